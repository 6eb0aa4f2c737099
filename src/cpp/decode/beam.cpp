#include "decode/beam.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "decode/processors.h"
#include "runtime/memory.h"
#include "runtime/profiler.h"

namespace fusedlstm {
namespace {

constexpr ptrdiff_t kScanBlock = 64;  // log-probabilities compared with the threshold at a time

bool among(const std::vector<int32_t>& tokens, int32_t token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

template <class T>
class Search {
 public:
  Search(StepRows<T>& rows, const BeamRequest<T>& request, const BeamOptions& options)
      : rows_(rows),
        request_(request),
        options_(options),
        kernels_(rows.kernels()),
        N_(request.N),
        V_(rows.vocabulary()),
        beams_of_group_(options.width / options.groups),
        // Enough for W / G beams when all stop tokens and all tokens of earlier groups are in the way.
        candidates_of_row_(
            std::min(V_, options.width + static_cast<ptrdiff_t>(options.constraints.stop_tokens.size()))),
        logits_(N_ * options.width * V_),
        sources_(static_cast<size_t>(N_)),
        candidates_(static_cast<size_t>(N_ * options.width)) {
    const int32_t* context = request.context;
    for (ptrdiff_t n = 0; n < N_; ++n) {
      Source& source = sources_[static_cast<size_t>(n)];
      if (context) {
        source.context = {context, context + request.context_sizes[n]};
        context += request.context_sizes[n];
      }
      source.groups.resize(static_cast<size_t>(options.groups));
      for (Group& group : source.groups) group.beams = {static_cast<int32_t>(n)};  // they begin as one
      beams_.push_back({static_cast<int32_t>(n), kRoot, 0});
    }
  }

  std::vector<std::vector<Hypothesis<T>>> run(const Poll& poll) {
    std::vector<Buffer<T>> scratch;
    for (int t = 0; t < num_threads(); ++t) scratch.emplace_back(2 * V_);
    run_job(static_cast<int>(scratch.size()), poll, [&](Team& team) {
      const T* logits = request_.logits;
      if (!logits) {
        logits = logits_.data();
        rows_.step_share(team, N_, request_.start_tokens, logits_.data());
      }
      for (ptrdiff_t step = 0;; ++step, logits = logits_.data()) {
        const Share mine = share_of(static_cast<ptrdiff_t>(beams_.size()), team.thread(), team.threads());
        for (ptrdiff_t row = mine.begin; row < mine.end; ++row)
          find_candidates(row, step, logits + row * V_, scratch[static_cast<size_t>(team.thread())].data());
        team.barrier();
        const Share sources = share_of(N_, team.thread(), team.threads());
        for (ptrdiff_t n = sources.begin; n < sources.end; ++n)
          choose_beams(sources_[static_cast<size_t>(n)], step);
        team.barrier();
        if (team.thread() == 0) move_rows(step + 1);
        team.barrier();
        if (beams_.empty()) return;
        rows_.step_share(team, static_cast<ptrdiff_t>(beams_.size()), tokens_.data(), logits_.data());
      }
    });
    std::vector<std::vector<Hypothesis<T>>> result;
    for (const Source& source : sources_) {
      std::vector<Hypothesis<T>> best;
      for (const Finished& finished : n_best(source)) best.push_back(hypothesis(source, finished));
      result.push_back(std::move(best));
    }
    return result;
  }

 private:
  static constexpr ptrdiff_t kRoot = -1;

  // The hypotheses of a source are a tree: each node knows the token that led to it.
  struct Node {
    ptrdiff_t parent;
    int32_t token;
    T log_probability;  // under the model, before the constraints
  };
  struct Beam {  // what a row of the model holds
    int32_t source;
    ptrdiff_t node;
    double sum;  // of log-probabilities after the constraints
  };
  struct Candidate {
    double sum;
    int32_t rank, row;  // of its beam within the group, and in the model
    int32_t token;
    T log_probability;
  };
  struct Finished {
    double score;
    ptrdiff_t node, length;
  };
  struct Next {
    int32_t row;
    ptrdiff_t node;
    double sum;
  };
  struct Group {
    std::vector<int32_t> beams;      // rows, best first
    std::vector<Finished> finished;  // best first, at most W / G
    std::vector<Next> next;          // of this step
  };
  struct Source {
    std::vector<int32_t> context;
    std::vector<Node> nodes;
    std::vector<Group> groups;
    ptrdiff_t agreed = 0;  // length of the prefix that was handed out
    bool ended = false;    // and all of it
  };

  // Appends the last `count` tokens of the hypothesis that ends at `node`.
  static void append_path(const Source& source, ptrdiff_t node, ptrdiff_t count, std::vector<int32_t>& ids) {
    ids.resize(ids.size() + static_cast<size_t>(count));
    for (auto id = ids.rbegin(); count > 0; --count, ++id) {
      const Node& last = source.nodes[static_cast<size_t>(node)];
      *id = last.token;
      node = last.parent;
    }
  }

  double length_penalty(ptrdiff_t length) const {
    const double t = static_cast<double>(length);
    return std::pow(options_.length_penalty_form == BeamOptions::LengthPenalty::kPlain ? t : (5 + t) / 6,
                    options_.length_penalty);
  }

  // log_p under the constraints: in `changed`, or log_p itself where there are none.
  const T* constrained(const Beam& beam, ptrdiff_t step, const T* log_p, T* changed) const {
    const Source& source = sources_[static_cast<size_t>(beam.source)];
    const ptrdiff_t prompt = static_cast<ptrdiff_t>(source.context.size());
    if (!is_constrained(options_.constraints, {nullptr, prompt + step, prompt})) return log_p;
    std::vector<int32_t> ids = source.context;
    append_path(source, beam.node, step, ids);
    constrain(options_.constraints, {ids.data(), prompt + step, prompt}, nullptr, V_, log_p, changed);
    return changed;
  }

  // The best continuations of one row, best first, lower ids first among equals: one pass over V, in which
  // few elements pass the worst one kept.
  void find_candidates(ptrdiff_t row, ptrdiff_t step, const T* logits, T* scratch) {
    const Scope scope(Phase::kSampling);
    const Beam& beam = beams_[static_cast<size_t>(row)];
    T largest;
    const T log_sum = kernels_.softmax_row(V_, logits, T(1), nullptr, &largest);
    if (!(log_sum - log_sum == 0 && largest - largest == 0))
      throw NotNumbers("the logits of source " + std::to_string(beam.source) + " at new token " +
                       std::to_string(step) + " are not finite");
    T* const log_p = scratch;
    for (ptrdiff_t j = 0; j < V_; ++j) log_p[j] = (logits[j] - largest) - log_sum;
    const T* const scores = constrained(beam, step, log_p, scratch + V_);

    std::vector<Candidate>& best = candidates_[static_cast<size_t>(row)];
    best.clear();
    T threshold = -std::numeric_limits<T>::infinity();
    const auto offer = [&](ptrdiff_t j) {
      const double sum = beam.sum + static_cast<double>(scores[j]);
      const bool full = static_cast<ptrdiff_t>(best.size()) == candidates_of_row_;
      if (full && !(sum > best.back().sum)) return;  // rounded to the same sum
      if (full) best.pop_back();
      const auto place = std::upper_bound(best.begin(), best.end(), sum,
                                          [](double a, const Candidate& b) { return a > b.sum; });
      best.insert(place, {sum, 0, static_cast<int32_t>(row), static_cast<int32_t>(j), log_p[j]});
      if (static_cast<ptrdiff_t>(best.size()) == candidates_of_row_) threshold = scores[best.back().token];
    };
    for (ptrdiff_t block = 0; block < V_; block += kScanBlock) {
      const ptrdiff_t end = std::min(block + kScanBlock, V_);
      int any = 0;
      for (ptrdiff_t j = block; j < end; ++j) any |= scores[j] > threshold;
      for (ptrdiff_t j = block; any && j < end; ++j)
        if (scores[j] > threshold) offer(j);
    }
  }

  void choose_beams(Source& source, ptrdiff_t step) const {
    const Scope scope(Phase::kSampling);
    std::vector<Candidate> pool;
    std::vector<int32_t> chosen;  // by the groups before, stop tokens apart
    const ptrdiff_t W = beams_of_group_;
    for (Group& group : source.groups) {
      group.next.clear();
      if (group.beams.empty()) continue;
      pool.clear();
      for (size_t rank = 0; rank < group.beams.size(); ++rank) {
        for (Candidate candidate : candidates_[static_cast<size_t>(group.beams[rank])]) {
          candidate.rank = static_cast<int32_t>(rank);
          if (!chosen.empty())
            candidate.sum -= options_.diversity_strength *
                             static_cast<double>(std::count(chosen.begin(), chosen.end(), candidate.token));
          pool.push_back(candidate);
        }
      }
      const size_t most = static_cast<size_t>(W) * (1 + options_.constraints.stop_tokens.size());
      const auto end = pool.begin() + static_cast<ptrdiff_t>(std::min(pool.size(), most));
      std::partial_sort(pool.begin(), end, pool.end(), [](const Candidate& a, const Candidate& b) {
        if (a.sum != b.sum) return a.sum > b.sum;
        return std::pair(a.rank, a.token) < std::pair(b.rank, b.token);
      });
      std::vector<int32_t> tokens;
      const bool last = step + 1 == options_.max_new_tokens;
      for (auto candidate = pool.begin(); candidate != end; ++candidate) {
        const bool stops = among(options_.constraints.stop_tokens, candidate->token), ends = stops || last;
        if (ends ? candidate - pool.begin() >= W : static_cast<ptrdiff_t>(group.next.size()) == W) continue;
        const ptrdiff_t node = static_cast<ptrdiff_t>(source.nodes.size());
        source.nodes.push_back(
            {beams_[static_cast<size_t>(candidate->row)].node, candidate->token, candidate->log_probability});
        if (!stops) tokens.push_back(candidate->token);
        if (ends)
          finish(group, {candidate->sum / length_penalty(step + 1), node, step + 1});
        else
          group.next.push_back({candidate->row, node, candidate->sum});
      }
      if (is_done(group, step + 1)) group.next.clear();
      chosen.insert(chosen.end(), tokens.begin(), tokens.end());
    }
  }

  void finish(Group& group, Finished hypothesis) const {
    const auto place =
        std::upper_bound(group.finished.begin(), group.finished.end(), hypothesis.score,
                         [](double score, const Finished& other) { return score > other.score; });
    group.finished.insert(place, hypothesis);
    if (static_cast<ptrdiff_t>(group.finished.size()) > beams_of_group_) group.finished.pop_back();
  }

  bool is_done(const Group& group, ptrdiff_t length) const {
    using EarlyStopping = BeamOptions::EarlyStopping;
    if (group.next.empty()) return true;
    if (static_cast<ptrdiff_t>(group.finished.size()) < beams_of_group_) return false;
    if (options_.early_stopping == EarlyStopping::kTrue) return true;
    if (options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0)
      length = options_.max_new_tokens;
    return !(group.next.front().sum / length_penalty(length) > group.finished.back().score);
  }

  // The next beams of all sources to the first rows; ended sources take none.
  void move_rows(ptrdiff_t length) {
    const Scope scope(Phase::kSampling);
    std::vector<Beam> beams;
    std::vector<int32_t> from;
    tokens_.clear();
    bool in_place = true;
    for (size_t n = 0; n < sources_.size(); ++n) {
      Source& source = sources_[n];
      for (Group& group : source.groups) {
        group.beams.clear();
        for (const Next& next : group.next) {
          const int32_t row = static_cast<int32_t>(beams.size());
          group.beams.push_back(row);
          beams.push_back({static_cast<int32_t>(n), next.node, next.sum});
          tokens_.push_back(source.nodes[static_cast<size_t>(next.node)].token);
          from.push_back(next.row);
          in_place = in_place && next.row == row;
        }
      }
      if (request_.on_prefix && !source.ended) hand_out_prefix(static_cast<ptrdiff_t>(n), length);
    }
    beams_ = std::move(beams);
    if (!in_place) rows_.gather(static_cast<ptrdiff_t>(from.size()), from.data());
  }

  // The beams have `length` tokens now.
  void hand_out_prefix(ptrdiff_t n, ptrdiff_t length) {
    Source& source = sources_[static_cast<size_t>(n)];
    std::vector<int32_t> agreed, other;
    bool first = true;
    const auto agree = [&](ptrdiff_t node, ptrdiff_t tokens) {
      other.clear();
      append_path(source, node, tokens - source.agreed, other);
      if (first)
        agreed = other;
      else
        agreed.erase(std::mismatch(agreed.begin(), agreed.end(), other.begin(), other.end()).first,
                     agreed.end());
      first = false;
    };
    source.ended = true;
    for (const Group& group : source.groups) {
      for (const Next& next : group.next) agree(next.node, length);
      source.ended = source.ended && group.next.empty();
    }
    const std::vector<Finished> best = n_best(source);
    if (!best.empty()) agree(best.front().node, best.front().length);
    source.agreed += static_cast<ptrdiff_t>(agreed.size());
    request_.on_prefix(n, agreed, source.ended);
  }

  std::vector<Finished> n_best(const Source& source) const {
    std::vector<Finished> all;
    for (const Group& group : source.groups)
      all.insert(all.end(), group.finished.begin(), group.finished.end());
    std::stable_sort(all.begin(), all.end(),
                     [](const Finished& a, const Finished& b) { return a.score > b.score; });
    if (static_cast<ptrdiff_t>(all.size()) > options_.num_return)
      all.resize(static_cast<size_t>(options_.num_return));
    return all;
  }

  static Hypothesis<T> hypothesis(const Source& source, const Finished& finished) {
    Hypothesis<T> result{finished.score, {}, {}};
    append_path(source, finished.node, finished.length, result.tokens);
    for (ptrdiff_t node = finished.node; node != kRoot; node = source.nodes[static_cast<size_t>(node)].parent)
      result.log_probability.push_back(source.nodes[static_cast<size_t>(node)].log_probability);
    std::reverse(result.log_probability.begin(), result.log_probability.end());
    return result;
  }

  StepRows<T>& rows_;
  const BeamRequest<T>& request_;
  const BeamOptions& options_;
  const Kernels<T>& kernels_;
  const ptrdiff_t N_, V_, beams_of_group_, candidates_of_row_;
  Buffer<T> logits_;  // (N W, V)
  std::vector<Source> sources_;
  std::vector<Beam> beams_;                         // by row
  std::vector<int32_t> tokens_;                     // fed next, by row
  std::vector<std::vector<Candidate>> candidates_;  // by row
};

}  // namespace

template <class T>
std::vector<std::vector<Hypothesis<T>>> beam_search(StepRows<T>& rows, const BeamRequest<T>& request,
                                                    const BeamOptions& options, const Poll& poll) {
  if (request.N == 0) return {};
  return Search<T>(rows, request, options).run(poll);
}

template std::vector<std::vector<Hypothesis<float>>> beam_search(StepRows<float>&, const BeamRequest<float>&,
                                                                 const BeamOptions&, const Poll&);
template std::vector<std::vector<Hypothesis<double>>> beam_search(StepRows<double>&,
                                                                  const BeamRequest<double>&,
                                                                  const BeamOptions&, const Poll&);

}  // namespace fusedlstm
