#include "decode/one_to_many.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "decode/draw.h"
#include "kernels/philox.h"
#include "lstm/split.h"
#include "lstm/stepwise.h"
#include "runtime/products.h"
#include "stream/stream.h"

namespace fusedlstm {
namespace {

// Where a row of x came from: a row of the embedding (its id), or one of these.
constexpr int32_t kOwn = -1;    // the output before, through which the gradient goes back
constexpr int32_t kGiven = -2;  // x_0, or a target of real values

// All matrices but the user's have the packed rows of lstm/rows.h: row start(s) + j is step s of slot j, and
// its output feeds row start(s + 1) + j.
template <class T>
class Loop {
 public:
  Loop(const PackedWeights<T>& lstm, const PackedLinear<T>& output, const OneToManyRequest<T>& request,
       bool backward)
      : lstm_(lstm),
        output_(output),
        request_(request),
        k_(lstm.kernels()),
        rows_(request.N, request.time, request.lengths),
        I_(lstm.shape.input_size),
        H_(lstm.shape.hidden_size),
        O_(output.outputs),
        x_pitch_(row_pitch<T>(I_)),
        h_pitch_(row_pitch<T>(H_)),
        all_taught_(request.teacher_probability >= 1),
        soft_(request.feedback == Feedback::kSoft && !all_taught_),
        threads_(layer_threads(rows_.batch(), rows_.total(), H_, I_) == 1 ? 1 : num_threads()),
        stepwise_(lstm, rows_, request.initial, request.dropout, request.seed, threads_,
                  all_taught_ ? I_ : 0),
        x_(rows_.total() * x_pitch_),
        z_(rows_.total() * O_),
        p_((soft_ ? rows_.total() : drawn_rows(request)) * O_),
        source_(static_cast<size_t>(rows_.total()), kGiven) {
    if (soft_) {
      mix_ = Buffer<T>(packed_size(O_, I_, k_.panel));
      k_.pack(O_, I_, request.embedding, I_, SourceBy::kRows, {}, mix_.data());
      if (backward) {
        mix_backward_ = Buffer<T>(packed_size(I_, O_, k_.panel));
        k_.pack(I_, O_, request.embedding, I_, SourceBy::kColumns, {}, mix_backward_.data());
      }
    }
  }

  void forward(const Poll& poll) {
    run_job(threads_, poll, [&](Team& team) {
      given_share(team);
      team.barrier();
      if (all_taught_) stepwise_.input_ahead_share(team, {x_.data(), x_pitch_});
      for (ptrdiff_t s = 0; s < rows_.steps(); ++s) {
        stepwise_.forward_share(team, s, {x(s), x_pitch_});
        if (all_taught_) continue;
        output_share(team, s, s + 1);
        team.barrier();
        if (s + 1 == rows_.steps()) break;
        feed_share(team, s);
        team.barrier();
      }
      if (all_taught_) output_share(team, 0, rows_.steps());
    });
  }

  void write_outputs(T* y) const {
    std::fill(y, y + request_.N * request_.time * O_, T(0));
    for_rows([&](ptrdiff_t r, ptrdiff_t user) { std::copy(z(r), z(r) + O_, y + user * O_); });
  }

  // Mean loss; z becomes its gradient where that is wanted.
  double loss(bool backward, const Poll& poll) {
    const ptrdiff_t P = rows_.total();
    if (P == 0) return 0;
    T* const dz = backward ? z_.data() : nullptr;
    if (request_.target_values) {
      Buffer<T> targets(P * O_);
      for_rows([&](ptrdiff_t r, ptrdiff_t user) {
        const T* from = request_.target_values + user * O_;
        std::copy(from, from + O_, targets.data() + r * O_);
      });
      return mean_squared_error<T>(P * O_, z_.data(), targets.data(), dz);
    }
    std::vector<int32_t> targets(static_cast<size_t>(P));
    for_rows(
        [&](ptrdiff_t r, ptrdiff_t user) { targets[static_cast<size_t>(r)] = request_.target_tokens[user]; });
    const T scale = T(1) / static_cast<T>(P);
    return cross_entropy<T>(P, O_, z_.data(), targets.data(), -1, scale, dz, poll).nll /
           static_cast<double>(P);
  }

  void backward(const OneToManyGradients<T>& gradients, const Poll& poll) {
    const ptrdiff_t P = rows_.total();
    const bool through = !all_taught_ && request_.feedback != Feedback::kToken;
    dh_ = Buffer<T>(P * h_pitch_);
    dx_ = Buffer<T>(P * x_pitch_);
    dp_ = Buffer<T>(soft_ ? request_.N * O_ : 0);
    std::vector<Buffer<T>> scratch;
    for (int t = 0; t < threads_; ++t) scratch.emplace_back(transposed_scratch(std::max(H_, I_), k_.panel));
    stepwise_.begin_backward(nullptr, nullptr);
    run_job(threads_, poll, [&](Team& team) {
      T* const own_scratch = scratch[static_cast<size_t>(team.thread())].data();
      if (!through) {
        dh_share(team, 0, rows_.steps());
        team.barrier();
      }
      for (ptrdiff_t s = rows_.steps() - 1; s >= 0; --s) {
        if (through) {
          if (s + 1 < rows_.steps()) feedback_gradient_share(team, s);
          dh_share(team, s, s + 1);
          team.barrier();
        }
        stepwise_.backward_share(team, s, {dh_.data() + rows_.start(s) * h_pitch_, h_pitch_},
                                 all_taught_ ? nullptr : dx(s), x_pitch_);
      }
      if (all_taught_) stepwise_.input_ahead_gradients_share(team, dx_.data(), x_pitch_);
      stepwise_.weight_gradients_share(team, {x_.data(), x_pitch_}, gradients.parameters);
      output_gradients_share(team, gradients, own_scratch);
      if (!gradients.d_embedding) return;
      if (soft_) mix_gradient_share(team, gradients.d_embedding, own_scratch);
      team.barrier();
      embedding_gradient_share(team, gradients.d_embedding);
    });
    stepwise_.initial_gradients(gradients.dh0, gradients.dc0);
    std::fill(gradients.d_first, gradients.d_first + request_.N * I_, T(0));
    for (ptrdiff_t j = 0; j < first_rows(); ++j)
      std::copy(dx_.data() + j * x_pitch_, dx_.data() + j * x_pitch_ + I_,
                gradients.d_first + rows_.sequence(j) * I_);
  }

 private:
  T* x(ptrdiff_t s) { return x_.data() + rows_.start(s) * x_pitch_; }
  T* dx(ptrdiff_t s) { return dx_.data() + rows_.start(s) * x_pitch_; }
  const T* z(ptrdiff_t r) const { return z_.data() + r * O_; }
  // Soft feedback keeps the probabilities of every row for backward, a drawn token those of its step.
  T* p(ptrdiff_t s, ptrdiff_t j) { return p_.data() + (soft_ ? rows_.start(s) + j : j) * O_; }
  static ptrdiff_t drawn_rows(const OneToManyRequest<T>& request) { return request.sample ? request.N : 0; }
  ptrdiff_t first_rows() const { return rows_.steps() > 0 ? rows_.active(0) : 0; }
  int32_t& source(ptrdiff_t s, ptrdiff_t j) { return source_[static_cast<size_t>(rows_.start(s) + j)]; }

  // The output layer of the steps [begin, end), one of its three products.
  Work output_work(ptrdiff_t begin, ptrdiff_t end, int threads) const {
    return product_work(rows_.start(end) - rows_.start(begin), O_, H_, sizeof(T), sizeof(T), threads);
  }
  // Probabilities by embeddings, or its backward products; nothing with other feedback.
  Work mix_work(ptrdiff_t rows, int threads) const {
    return soft_ ? product_work(rows, O_, I_, sizeof(T), sizeof(T), threads) : Work{};
  }

  // body(packed row, user's row)
  template <class Body>
  void for_rows(const Body& body) const {
    for (ptrdiff_t s = 0; s < rows_.steps(); ++s)
      for (ptrdiff_t j = 0; j < rows_.active(s); ++j) body(rows_.start(s) + j, rows_.user_row(s, j, 0));
  }

  // What is known before the loop: x_0, and all of x where the teacher alone is heard.
  void given_share(const Team& team) {
    const Scope scope(Phase::kCopy);
    const Share first = share_of(first_rows(), team.thread(), team.threads());
    for (ptrdiff_t j = first.begin; j < first.end; ++j) {
      const T* from = request_.first + rows_.sequence(j) * I_;
      std::copy(from, from + I_, x_.data() + j * x_pitch_);
    }
    if (!all_taught_) return;
    const Share steps = share_of(std::max<ptrdiff_t>(rows_.steps() - 1, 0), team.thread(), team.threads());
    for (ptrdiff_t s = steps.begin; s < steps.end; ++s)
      for (ptrdiff_t j = 0; j < rows_.active(s + 1); ++j) teach(s, j);
  }

  // The target of step s is the input of step s + 1.
  void teach(ptrdiff_t s, ptrdiff_t j) {
    const ptrdiff_t user = rows_.user_row(s, j, 0);
    if (request_.target_tokens) return look_up(s, j, request_.target_tokens[user]);
    const T* from = request_.target_values + user * O_;
    std::copy(from, from + I_, x(s + 1) + j * x_pitch_);
  }
  void look_up(ptrdiff_t s, ptrdiff_t j, int32_t token) {
    source(s + 1, j) = token;
    const T* from = request_.embedding + token * I_;
    std::copy(from, from + I_, x(s + 1) + j * x_pitch_);
  }

  // z of the steps [begin, end)
  void output_share(Team& team, ptrdiff_t begin, ptrdiff_t end) {
    if (begin == end) return;
    const Scope scope(Phase::kOutput, -1, [&] { return output_work(begin, end, team.threads()); });
    const MatrixRows<T> h = stepwise_.h(begin);
    gemm_share<T>(k_,
                  {.M = rows_.start(end) - rows_.start(begin),
                   .N = O_,
                   .K = H_,
                   .a = h.data,
                   .a_row = h.pitch,
                   .b = output_.forward.data(),
                   .init = output_.bias.data(),
                   .init_row = 0,
                   .c = z_.data() + rows_.start(begin) * O_,
                   .c_row = O_},
                  team);
  }

  // x_{s+1} of the slots that go on, from z_s or the targets.
  void feed_share(Team& team, ptrdiff_t s) {
    const ptrdiff_t M = rows_.active(s + 1);
    const Scope scope(Phase::kSampling, -1, [&] { return mix_work(M, team.threads()); });
    const Share own = share_of(M, team.thread(), team.threads());
    for (ptrdiff_t j = own.begin; j < own.end; ++j) {
      const Philox4 random = philox(request_.seed, kFeedbackStream, static_cast<uint32_t>(rows_.sequence(j)),
                                    static_cast<uint32_t>(s), 0);
      const bool taught = random.word[0] < request_.teacher_probability * 0x1p32;
      const T* const z_j = z(rows_.start(s) + j);
      if (soft_) probabilities(z_j, p(s, j));  // of a taught row too: the product takes all of them
      if (taught) {
        teach(s, j);
      } else if (request_.feedback == Feedback::kToken) {
        look_up(s, j, request_.sample ? draw(z_j, p(s, j), random) : largest(z_j));
      } else {
        source(s + 1, j) = kOwn;
        if (!soft_) std::copy(z_j, z_j + O_, x(s + 1) + j * x_pitch_);
      }
    }
    if (!soft_) return;
    team.barrier();
    gemm_share<T>(k_,
                  {.M = M,
                   .N = I_,
                   .K = O_,
                   .a = p(s, 0),
                   .a_row = O_,
                   .b = mix_.data(),
                   .init = nullptr,
                   .init_row = 0,
                   .c = x(s + 1),
                   .c_row = x_pitch_},
                  team);
    team.barrier();
    for (ptrdiff_t j = own.begin; j < own.end; ++j)
      if (source(s + 1, j) != kOwn) look_up(s, j, source(s + 1, j));
  }

  int32_t largest(const T* z_j) const { return static_cast<int32_t>(std::max_element(z_j, z_j + O_) - z_j); }
  void probabilities(const T* z_j, T* p_j) const {
    const T inverse = T(1) / request_.temperature;
    T top;
    for (ptrdiff_t v = 0; v < O_; ++v) p_j[v] = z_j[v] * inverse;
    k_.softmax_row(O_, p_j, T(1), p_j, &top);
  }
  int32_t draw(const T* z_j, T* p_j, const Philox4& random) const {
    probabilities(z_j, p_j);
    const int32_t token = draw_by_weight(O_, p_j, uniform(random.word[1], random.word[2]));
    return token < 0 ? largest(z_j) : token;
  }

  // dz_s += what x_{s+1} hands back, of rows that were fed their own output; ends with a barrier.
  //   output: dx     soft: (p / temperature) (dp - sum p dp), dp = dx E^T
  void feedback_gradient_share(Team& team, ptrdiff_t s) {
    const ptrdiff_t M = rows_.active(s + 1);
    const Scope scope(Phase::kInputGradient, -1, [&] { return mix_work(M, team.threads()); });
    if (soft_) {
      gemm_share<T>(k_,
                    {.M = M,
                     .N = O_,
                     .K = I_,
                     .a = dx(s + 1),
                     .a_row = x_pitch_,
                     .b = mix_backward_.data(),
                     .init = nullptr,
                     .init_row = 0,
                     .c = dp_.data(),
                     .c_row = O_},
                    team);
      team.barrier();
    }
    const Share own = share_of(M, team.thread(), team.threads());
    const T inverse = T(1) / request_.temperature;
    for (ptrdiff_t j = own.begin; j < own.end; ++j) {
      if (source(s + 1, j) != kOwn) continue;
      T* const dz = z_.data() + (rows_.start(s) + j) * O_;
      if (!soft_) {
        k_.add(O_, dx(s + 1) + j * x_pitch_, dz);
        continue;
      }
      const T *const p_j = p(s, j), *const dp = dp_.data() + j * O_;
      double sum = 0;
      for (ptrdiff_t v = 0; v < O_; ++v) sum += static_cast<double>(p_j[v]) * static_cast<double>(dp[v]);
      const T mean = static_cast<T>(sum);
      for (ptrdiff_t v = 0; v < O_; ++v) dz[v] += p_j[v] * (dp[v] - mean) * inverse;
    }
    team.barrier();
  }

  // dh = dz W of the steps [begin, end)
  void dh_share(Team& team, ptrdiff_t begin, ptrdiff_t end) {
    const Scope scope(Phase::kInputGradient, -1, [&] { return output_work(begin, end, team.threads()); });
    gemm_share<T>(k_,
                  {.M = rows_.start(end) - rows_.start(begin),
                   .N = H_,
                   .K = O_,
                   .a = z(rows_.start(begin)),
                   .a_row = O_,
                   .b = output_.backward.data(),
                   .init = nullptr,
                   .init_row = 0,
                   .c = dh_.data() + rows_.start(begin) * h_pitch_,
                   .c_row = h_pitch_},
                  team);
  }

  void output_gradients_share(Team& team, const OneToManyGradients<T>& gradients, T* scratch) {
    const Scope scope(Phase::kWeightGradient, -1,
                      [&] { return output_work(0, rows_.steps(), team.threads()); });
    const ptrdiff_t P = rows_.total();
    if (P == 0) return;
    const MatrixRows<T> h = stepwise_.h(0);
    gemm_transposed_share<T>(k_,
                             {.M = O_,
                              .R = P,
                              .a = z_.data(),
                              .a_row = O_,
                              .a_rows = nullptr,
                              .side = {H_, h.data, h.pitch, nullptr, gradients.d_weight, H_},
                              .scratch = scratch},
                             team);
    const Share columns = share_of(O_, team.thread(), team.threads(), 16);
    if (gradients.d_bias && columns.size() > 0)
      k_.add_rows(P, columns.size(), z_.data() + columns.begin, O_, nullptr,
                  gradients.d_bias + columns.begin);
  }

  // dE += p^T dx of the rows that were fed probabilities
  void mix_gradient_share(Team& team, T* d_embedding, T* scratch) {
    const Scope scope(Phase::kWeightGradient, -1, [&] { return mix_work(rows_.total(), team.threads()); });
    std::vector<int32_t> fed, from;
    for (ptrdiff_t s = 0; s + 1 < rows_.steps(); ++s) {
      for (ptrdiff_t j = 0; j < rows_.active(s + 1); ++j) {
        if (source(s + 1, j) != kOwn) continue;
        fed.push_back(static_cast<int32_t>(rows_.start(s + 1) + j));
        from.push_back(static_cast<int32_t>(rows_.start(s) + j));
      }
    }
    gemm_transposed_share<T>(k_,
                             {.M = O_,
                              .R = static_cast<ptrdiff_t>(fed.size()),
                              .a = p_.data(),
                              .a_row = O_,
                              .a_rows = from.data(),
                              .side = {I_, dx_.data(), x_pitch_, fed.data(), d_embedding, I_},
                              .scratch = scratch},
                             team);
  }

  // dE[k] += dx of the rows that were fed token k, in the order of rows: threads share columns.
  void embedding_gradient_share(const Team& team, T* d_embedding) {
    const Share columns = share_of(I_, team.thread(), team.threads(), 16);
    const Scope scope(Phase::kWeightGradient, -1,
                      [&] { return elements_work(rows_.total() * columns.size(), 1, 3 * sizeof(T)); });
    for (ptrdiff_t r = 0; r < rows_.total(); ++r) {
      const int32_t token = source_[static_cast<size_t>(r)];
      if (token >= 0)
        k_.add(columns.size(), dx_.data() + r * x_pitch_ + columns.begin,
               d_embedding + token * I_ + columns.begin);
    }
  }

  const PackedWeights<T>& lstm_;
  const PackedLinear<T>& output_;
  const OneToManyRequest<T>& request_;
  const Kernels<T>& k_;
  Rows rows_;
  ptrdiff_t I_, H_, O_, x_pitch_, h_pitch_;
  bool all_taught_, soft_;
  int threads_;
  Stepwise<T> stepwise_;
  Buffer<T> x_, z_, p_;
  std::vector<int32_t> source_;
  Buffer<T> mix_, mix_backward_;  // soft: panels of E (V, I) and E^T (I, V)
  Buffer<T> dh_, dx_, dp_;
};

}  // namespace

template <class T>
double one_to_many(const PackedWeights<T>& lstm, const PackedLinear<T>& output,
                   const OneToManyRequest<T>& request, T* y, const OneToManyGradients<T>* gradients,
                   const Poll& poll) {
  Loop<T> loop(lstm, output, request, gradients != nullptr);
  loop.forward(poll);
  if (y) loop.write_outputs(y);
  const double loss = loop.loss(gradients != nullptr, poll);
  if (gradients) loop.backward(*gradients, poll);
  return loss;
}

// Rows do not see each other: each thread runs its own to the end, without a barrier.
template <class T>
void one_to_many_generate(const std::shared_ptr<const PackedWeights<T>>& lstm, const PackedLinear<T>& output,
                          ptrdiff_t N, ptrdiff_t steps, const T* first, const LstmStates<T>& initial, T* y,
                          T* h_n, T* c_n, const Poll& poll) {
  const LstmShape& shape = lstm->shape;
  const ptrdiff_t L = shape.num_layers, I = shape.input_size, H = shape.hidden_size, O = output.outputs;
  const double flops =
      2.0 * static_cast<double>(N * steps) * static_cast<double>(parameter_count(shape) + O * H);
  run_job(N > 1 ? threads_for(flops) : 1, poll, [&](Team& team) {
    const Share own = share_of(N, team.thread(), team.threads());
    if (own.size() == 0) return;
    Stream<T> stream(lstm, own.size());
    std::vector<T> state_h(static_cast<size_t>(L * H)), state_c(state_h.size());
    // h or c of one sequence: (L, N, H) <-> (L, H)
    const auto gather = [&](const T* states, ptrdiff_t n, std::vector<T>& to) {
      for (ptrdiff_t layer = 0; layer < L; ++layer)
        std::copy(states + (layer * N + n) * H, states + (layer * N + n + 1) * H, to.begin() + layer * H);
      return to.data();
    };
    for (ptrdiff_t n = own.begin; n < own.end; ++n)
      stream.join(initial.h0 ? gather(initial.h0, n, state_h) : nullptr,
                  initial.c0 ? gather(initial.c0, n, state_c) : nullptr);
    Buffer<T> h(own.size() * H);
    const T* x = first + own.begin * I;
    ptrdiff_t x_row = I;
    for (ptrdiff_t s = 0; s < steps; ++s) {
      stream.step(x, x_row, h.data(), H);
      T* const y_s = y + (own.begin * steps + s) * O;
      output.kernels().gemm({.M = own.size(),
                             .N = O,
                             .K = H,
                             .a = h.data(),
                             .a_row = H,
                             .b = output.forward.data(),
                             .init = output.bias.data(),
                             .init_row = 0,
                             .c = y_s,
                             .c_row = steps * O});
      x = y_s;
      x_row = steps * O;
      team.poll();
    }
    for (ptrdiff_t n = own.begin; n < own.end; ++n) {
      stream.save(n - own.begin, state_h.data(), state_c.data());
      for (ptrdiff_t layer = 0; layer < L; ++layer) {
        std::copy_n(state_h.begin() + layer * H, H, h_n + (layer * N + n) * H);
        std::copy_n(state_c.begin() + layer * H, H, c_n + (layer * N + n) * H);
      }
    }
  });
}

template <class T>
void one_to_many_begin(const LanguageModelDecoder<T>& model, ptrdiff_t N, const T* first,
                       const LstmStates<T>& initial, StepRows<T>& rows, T* logits, const Poll& poll) {
  const ptrdiff_t L = model.shape().num_layers, H = model.shape().hidden_size;
  Buffer<T> states(2 * L * N * H), state(2 * L * H);  // h, then c
  T* const c_n = states.data() + L * N * H;
  lstm_forward<T>(model.lstm(), N, 1, nullptr, {.x = first}, initial, {nullptr, states.data(), c_n}, poll);
  linear_forward<T>(model.output(), N, states.data() + (L - 1) * N * H, logits, poll);
  for (ptrdiff_t n = 0; n < N; ++n) {
    for (ptrdiff_t part = 0; part < 2 * L; ++part)
      std::copy_n(states.data() + (part * N + n) * H, H, state.data() + part * H);
    rows.load(n, state.data());
  }
}

#define FUSEDLSTM_INSTANTIATE(T)                                                                             \
  template double one_to_many(const PackedWeights<T>&, const PackedLinear<T>&, const OneToManyRequest<T>&,   \
                              T*, const OneToManyGradients<T>*, const Poll&);                                \
  template void one_to_many_generate(const std::shared_ptr<const PackedWeights<T>>&, const PackedLinear<T>&, \
                                     ptrdiff_t, ptrdiff_t, const T*, const LstmStates<T>&, T*, T*, T*,       \
                                     const Poll&);                                                           \
  template void one_to_many_begin(const LanguageModelDecoder<T>&, ptrdiff_t, const T*, const LstmStates<T>&, \
                                  StepRows<T>&, T*, const Poll&);
FUSEDLSTM_INSTANTIATE(float)
FUSEDLSTM_INSTANTIATE(double)
#undef FUSEDLSTM_INSTANTIATE

}  // namespace fusedlstm
