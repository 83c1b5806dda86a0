// `varve vm move`, `vm export`, `vm import`: a machine goes elsewhere, whole.
#pragma once

namespace CLI {
class App;
}

namespace varve::cli {

struct Context;

void add_vm_transfer(CLI::App& vm, Context& context);

}  // namespace varve::cli
