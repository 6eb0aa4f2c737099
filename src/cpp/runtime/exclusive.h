// Memory that calls add to, such as gradients: calls that share some of it run one after the other.
//
// Python threads may run backward of one model at the same moment. Two additions to one number at once would
// lose one of them; so whoever comes second waits here, without the interpreter.
#pragma once

#include <cstddef>
#include <vector>

#include "runtime/threads.h"

namespace fusedlstm {

class Exclusive {
 public:
  struct Range {
    const void* begin;  // null: none
    size_t bytes;
  };
  // Waits until no other call has any of the ranges, then has all of them. Throws Interrupted when the poll
  // asks for the call to end.
  Exclusive(std::vector<Range> ranges, const Poll& poll);
  ~Exclusive();
  Exclusive(const Exclusive&) = delete;
  Exclusive& operator=(const Exclusive&) = delete;

 private:
  std::vector<Range> ranges_;
};

}  // namespace fusedlstm
