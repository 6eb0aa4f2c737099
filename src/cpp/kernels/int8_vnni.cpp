// int8 products by AVX512-VNNI: four products at a time, of unsigned and signed bytes.
#define FUSEDLSTM_INT8_VNNI
#include "kernels/int8.h"

namespace fusedlstm {

extern const Int8Kernels int8_vnni;
const Int8Kernels int8_vnni = int8_kernels();

}  // namespace fusedlstm
