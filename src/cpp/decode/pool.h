// Sequences that are generated together on the rows of one model. Each has its own options, seed and tokens;
// what it gets depends on nothing else.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "decode/processors.h"
#include "decode/sampler.h"
#include "decode/step_model.h"
#include "runtime/memory.h"

namespace fusedlstm {

struct Sequence {
  int64_t id;
  std::shared_ptr<const SamplingOptions> options;
  uint64_t seed;
  std::vector<int32_t> tokens;  // the prompt's, then the new ones
  ptrdiff_t prompt;             // how many are the prompt's

  History history() const { return {tokens.data(), static_cast<ptrdiff_t>(tokens.size()), prompt}; }
};

// Called on the thread that asked for the tokens; null: not wanted.
template <class T>
struct Hooks {
  using Sequences = std::vector<Sequence>;
  std::function<void(const Sequences&, bool* allowed)> token_mask;  // fills allowed (rows, V)
  std::function<void(const Sequences&, T* scores)> processor;       // changes scores (rows, V)
};

enum class Finish : int8_t { kNot, kLength, kStopToken, kStopString };

// The next token of a row. Log-probabilities are those of softmax(logits): no constraint, no temperature.
template <class T>
struct Choice {
  int32_t token;
  T log_probability;
  Finish finish;             // the sequence ends with this token
  int32_t behind;            // bytes of its text behind the stop string
  std::vector<int32_t> top;  // the most probable tokens
  std::vector<T> top_log_probability;
};

template <class T>
class GenerationPool {
 public:
  explicit GenerationPool(StepRows<T>& rows);

  // Row j is sequence j; what follows it are logits(j), which the caller fills before `add`.
  const std::vector<Sequence>& sequences() const { return sequences_; }
  ptrdiff_t count() const { return static_cast<ptrdiff_t>(sequences_.size()); }
  T* logits(ptrdiff_t row) { return logits_.data() + row * rows_.vocabulary(); }
  const T* logits(ptrdiff_t row) const { return logits_.data() + row * rows_.vocabulary(); }
  void add(Sequence sequence) { sequences_.push_back(std::move(sequence)); }
  void remove(ptrdiff_t row);  // later rows move up by one

  // Before a job of at most so many threads that makes steps; after sequences were added.
  void prepare(int threads, const Hooks<T>& hooks);
  // A step: all threads call the shares, one of them the two between. Whatever `choose_share` throws, no
  // sequence has changed. The caller has a barrier before `step_share`.
  void choose_share(Team& team, const Hooks<T>& hooks);
  void append();  // choices become part of their sequences
  void drop_finished();
  void step_share(Team& team);
  const std::vector<Choice<T>>& choices() const { return choices_; }  // the latest, by row before the drop

 private:
  void keep(const std::vector<int32_t>& kept);  // row j becomes row kept[j], ascending; logits stay
  void choose_row(size_t row, Sampler<T>& sampler, const T* scores);

  StepRows<T>& rows_;
  std::vector<Sequence> sequences_;
  Buffer<T> logits_;                  // (capacity, V)
  Buffer<T> scores_;                  // the same, once something changes logits
  Buffer<bool> allowed_;              // (capacity, V), once there is a mask
  std::vector<Sampler<T>> samplers_;  // by thread
  std::vector<Choice<T>> choices_;
  std::vector<int32_t> fed_;
};

}  // namespace fusedlstm
