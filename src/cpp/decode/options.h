// What is asked of a generation, model-independent. V token ids.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace fusedlstm {

// The text that a token adds: `separator` goes before each token but the one that ends a line, unless a line
// just began.
struct TokenTexts {
  std::vector<std::string> text;  // (V)
  std::string separator;
  int32_t line_end = -1;  // -1: no token ends lines

  std::string piece(int32_t before, int32_t token) const {
    const bool joined = separator.empty() || token == line_end || before < 0 || before == line_end;
    return (joined ? "" : separator) + text[static_cast<size_t>(token)];
  }
};

// What may follow, whatever its probability.
struct Constraints {
  double repetition_penalty = 1;       // of logits of tokens seen: z < 0 ? z p : z / p; Keskar et al. 2019
  int64_t no_repeat_ngram_size = 0;    // no n tokens occur twice in a row of prompt and new tokens; 0: may
  int64_t min_new_tokens = 0;          // no stop before
  std::vector<int32_t> banned_tokens;  // never
  std::map<int64_t, int32_t> forced_tokens;  // new token number -> the only choice
  std::vector<int32_t> stop_tokens;          // each ends its sequence, and is part of it
};

struct SamplingOptions {
  Constraints constraints;
  int64_t max_new_tokens = 0;
  bool greedy = false;     // the largest logit, the lowest id among equals
  double temperature = 1;  // > 0
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // (0, 1]; Holtzman et al. 2020
  double min_p = 0;        // [0, 1); Nguyen et al. 2024
  double typical_p = 1;    // (0, 1]; Meister et al. 2023
  std::vector<std::string> stop_strings;
  std::shared_ptr<const TokenTexts> token_texts;  // there if there are stop strings
  int64_t num_sequences = 1;                      // of each prompt
  int64_t top_log_probabilities = 0;              // how many of the most probable tokens to report
};

}  // namespace fusedlstm
