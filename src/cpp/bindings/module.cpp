// The extension module: registers what the other files of this folder bind.
#include "bindings/support.h"
#include "runtime/cpu.h"

// Without the GIL: what calls share is immutable, locked, atomic, or refused to whoever comes second (Turn).
PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "Native core of fusedlstm; its stub _core.pyi says what is here.";
  m.attr("__version__") = FUSEDLSTM_VERSION;
  // A wrong environment fails the import, and says why.
  fusedlstm::current_level();
  fusedlstm::num_threads();
  fusedlstm::bind_runtime(m);
  fusedlstm::bind_profiler(m);
  fusedlstm::bind_lstm(m);
  fusedlstm::bind_ops(m);
  fusedlstm::bind_generation(m);
  fusedlstm::bind_attention(m);
  fusedlstm::bind_decode(m);
  fusedlstm::bind_beam(m);
  fusedlstm::bind_attention_search(m);
  fusedlstm::bind_one_to_many(m);
  fusedlstm::bind_session(m);
  fusedlstm::bind_stream(m);
}
