#include "open_engine.h"

#include "padded_engine.h"
#include "ragged_engine.h"
#include "words.h"

namespace plc {

Result<std::unique_ptr<Engine>> open_engine(const std::string& model, const GraphContract& contract,
                                            const Precision& precision, const EngineOptions& options) {
  constexpr size_t kMostRows = 65536;
  if (options.max_batch < 1 || options.max_batch > kMostRows)
    return Error{ErrorCode::kArgument, joined({"loading ", model, ": ", options.max_batch,
                                               " rows at once; expected 1 to ", kMostRows})};
  if (contract.ranks != 1)
    return Error{ErrorCode::kFormat,
                 joined({"loading ", model, ": a base that is divided among ", contract.ranks,
                         " ranks; expected one. The Python runtime runs it."})};
  // Only graphs for our kernels have ragged rows. Where their weights are rounded, all products are ours.
  if (contract.rows == RowsMode::kRagged)
    return RaggedEngine::open(model, contract, precision, precision.quantization != Quantization::kNone,
                              options);
  return PaddedEngine::open(model, contract, precision, options);
}

}  // namespace plc
