#include "cli/plan_text.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace varve::cli {

void print_plan(Output& output, bool json, const Plan& plan) {
  if (json) {
    const nlohmann::json document = {{"dry_run", true},
                                     {"title", plan.title},
                                     {"checks", plan.checks},
                                     {"steps", plan.steps},
                                     {"notes", plan.notes}};
    // Names come from files that may hold anything.
    output.print(document.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
    return;
  }
  std::string text = fmt::format("Would {}:\n", plan.title);
  for (const std::string& check : plan.checks) text += fmt::format("  checked: {}\n", check);
  for (size_t i = 0; i < plan.steps.size(); ++i) text += fmt::format("  {}. {}\n", i + 1, plan.steps[i]);
  for (const std::string& note : plan.notes) text += fmt::format("  note: {}\n", note);
  text += "Nothing was changed.\n";
  output.print(visible_lines(text));
}

}  // namespace varve::cli
