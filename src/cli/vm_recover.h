// `varve vm recover`.
#pragma once

namespace CLI {
class App;
}

namespace varve::cli {

struct Context;

void add_vm_recover(CLI::App& vm, Context& context);

}  // namespace varve::cli
