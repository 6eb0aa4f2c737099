// Beam search over any model that steps rows of states.
// N sources, W beams for each in G groups of W / G, V token ids, T new tokens.
#pragma once

#include <functional>
#include <stdexcept>
#include <vector>

#include "decode/options.h"
#include "decode/step_model.h"

namespace fusedlstm {

struct BeamOptions {
  enum class LengthPenalty { kPlain, kGnmt };
  enum class EarlyStopping { kFalse, kTrue, kNever };

  Constraints constraints;   // on log-probabilities
  ptrdiff_t width = 5;       // W
  ptrdiff_t num_return = 1;  // <= W
  ptrdiff_t groups = 1;      // G, divides W
  double diversity_strength = 0;
  ptrdiff_t max_new_tokens = 1;
  double length_penalty = 1;
  LengthPenalty length_penalty_form = LengthPenalty::kPlain;
  EarlyStopping early_stopping = EarlyStopping::kFalse;
};

// Logits that no order can be made of.
struct NotNumbers : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class T>
struct BeamRequest {
  ptrdiff_t N;                   // source j has row j of the model at the start
  const T* logits;               // (N, V) of the first new token; null: from the start tokens
  const int32_t* start_tokens;   // (N), fed first where there are no logits
  const int32_t* context;        // ids before the new ones, source after source: the constraints see them
  const int32_t* context_sizes;  // (N), or null: none
  // Source, the ids by which its agreed prefix has grown, often none, and whether that is the end: called by
  // one thread after every step, once for each source that still runs. May be empty.
  std::function<void(ptrdiff_t, const std::vector<int32_t>&, bool)> on_prefix;
};

template <class T>
struct Hypothesis {
  double score;
  std::vector<int32_t> tokens;  // the stop token included
  std::vector<T> log_probability;
};

// The best num_return hypotheses of every source, best first; fewer where fewer exist.
//
// A hypothesis of length t has the score S / t^a (plain) or S / ((5 + t) / 6)^a (gnmt, Wu et al. 2016), where
// S is the sum of its tokens' log-probabilities after the constraints and the diversity penalty. At each step
// the candidates of a group, its beams with every token, are ordered by S (then lower beam, then lower id).
// Those with a stop token among the first W / G are finished hypotheses, of which the best W / G are kept;
// the first W / G others are the next beams. In the last step all count as finished. A group ends when it has
// W / G finished hypotheses and
//   kTrue   at once;
//   kFalse  when the best beam, at its present length, does not beat the worst of them;
//   kNever  when it would not even at the most favourable length: T where a > 0, else the present one;
// which is what Hugging Face's early_stopping means. Groups choose in turn, and each lowers S of a candidate
// by diversity_strength for every beam of an earlier group that was given the same token in this step, the
// last one included (Hamming diversity, Vijayakumar et al. 2018).
//
// The agreed prefix of a source is the longest one that all its beams and its best finished hypothesis share:
// the best of the result begins with it.
template <class T>
std::vector<std::vector<Hypothesis<T>>> beam_search(StepRows<T>& rows, const BeamRequest<T>& request,
                                                    const BeamOptions& options, const Poll& poll);

}  // namespace fusedlstm
