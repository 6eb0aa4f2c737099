// Runs AMX-BF16 and AVX512-BF16 instructions on machines that have AVX-512 but not these, for tests of the
// kernels that use them: slow, and exact by the operation sections of Intel's manual.
#pragma once

namespace fusedlstm_tests {

// Whether this machine could run the kernels of the level `avx512_bf16` or `amx` with the emulation
// installed.
bool can_emulate();

// From here on an instruction that the processor refuses is emulated; one that is not known ends the process.
void emulate_missing_instructions();

// Instructions emulated so far.
long emulated_instructions();

}  // namespace fusedlstm_tests
