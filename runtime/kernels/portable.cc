// The functions of kernels.h in what every machine has.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

namespace plc {
namespace portable {
#include "kernels.inc"
}
const Functions kPortable = {"portable", portable::round_rows, portable::multiply, portable::look_up,
                             portable::write_cache, portable::attend};
}  // namespace plc
