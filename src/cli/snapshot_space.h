// `varve snapshot space` and `varve snapshot diff`: what snapshots cost, and what differs between them.
#pragma once

namespace CLI {
class App;
}

namespace varve::cli {

struct Context;

void add_snapshot_space(CLI::App& snapshot, Context& context);
void add_snapshot_diff(CLI::App& snapshot, Context& context);

}  // namespace varve::cli
