#include "cli/version.h"

#include <fmt/format.h>

namespace varve::cli {

namespace {

#ifdef VARVE_WITH_LIBVIRT
constexpr bool kLibvirt = true;
#else
constexpr bool kLibvirt = false;
#endif
#ifdef VARVE_WITH_NBDKIT
constexpr bool kNbdkit = true;
#else
constexpr bool kNbdkit = false;
#endif
#ifdef VARVE_WITH_RBD
constexpr bool kRbd = true;
#else
constexpr bool kRbd = false;
#endif
#ifdef VARVE_WITH_WEB
constexpr bool kWeb = true;
#else
constexpr bool kWeb = false;
#endif

}  // namespace

std::string version_number() {
  return VARVE_VERSION;
}

std::string version_text() {
  const auto sign = [](bool present) { return present ? '+' : '-'; };
  return fmt::format("varve {}\nparts: {}libvirt {}nbdkit {}rbd {}web\n", version_number(), sign(kLibvirt),
                     sign(kNbdkit), sign(kRbd), sign(kWeb));
}

}  // namespace varve::cli
