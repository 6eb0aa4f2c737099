#include "runtime/profiler.h"

#include <pybind11/stl.h>

#include "bindings/support.h"
#include "runtime/ceilings.h"

namespace fusedlstm {
namespace {

py::dict as_dict(const ProfileReport& report) {
  py::list threads;
  for (const ThreadReport& thread : report.threads) {
    py::list counts, intervals;
    const auto name = [](Phase phase) { return kPhaseNames[static_cast<size_t>(phase)]; };
    for (const PhaseCount& count : thread.counts)
      counts.append(py::make_tuple(name(count.phase), count.layer, count.calls, count.timed, count.seconds,
                                   count.flops, count.bytes));
    for (const PhaseInterval& interval : thread.intervals)
      intervals.append(py::make_tuple(name(interval.phase), interval.layer, interval.begin, interval.end));
    py::dict one;
    one["name"] = thread.name;
    one["counts"] = counts;
    one["intervals"] = intervals;
    one["intervals_left_out"] = thread.intervals_left_out;
    threads.append(one);
  }
  py::dict result;
  result["seconds"] = report.seconds;
  result["threads"] = threads;
  return result;
}

double peak(const std::string& dtype) {
  const auto measure = [](Compute compute, auto zero) {
    double rate = 0;
    without_gil([&] { rate = peak_flops<decltype(zero)>(compute, python_poll()); });
    return rate;
  };
  if (dtype == "bfloat16") return measure(Compute::kBfloat16, float{});
  if (dtype == "int8") return measure(Compute::kInt8, float{});
  if (dtype == "float64") return measure(Compute::kFull, double{});
  require(dtype == "float32", "peak_flops",
          "dtype must be 'float32', 'float64', 'bfloat16' or 'int8', got '" + dtype + "'");
  return measure(Compute::kFull, float{});
}

}  // namespace

void bind_profiler(py::module_& m) {
  m.def(
      "profile_start",
      [](bool intervals) {
        try {
          start_profile(intervals);
        } catch (const std::logic_error& error) {
          throw std::runtime_error(std::string("profile_start: ") + error.what());
        }
      },
      py::arg("intervals") = false);
  m.def("profile_stop", [] {
    try {
      return as_dict(stop_profile());
    } catch (const std::logic_error& error) {
      throw std::runtime_error(std::string("profile_stop: ") + error.what());
    }
  });
  m.def("peak_flops", &peak, py::arg("dtype"));
  m.def(
      "read_bandwidth",
      [](ptrdiff_t bytes) {
        constexpr ptrdiff_t least = 1 << 12, most = ptrdiff_t{1} << 30;
        require(bytes >= least && bytes <= most, "read_bandwidth",
                "bytes must lie in " + std::to_string(least) + " .. " + std::to_string(most) + ", got " +
                    std::to_string(bytes));
        double rate = 0;
        without_gil([&] { rate = read_bandwidth(bytes, python_poll()); });
        return rate;
      },
      py::arg("bytes"));
}

}  // namespace fusedlstm
