/* Stepping a fusedlstm stream from native code: no Python, no interpreter lock, no allocation, no exceptions.
 *
 * stream.capsule (Python) is a PyCapsule named FUSEDLSTM_STREAM_CAPSULE that holds a fusedlstm_stream_v1:
 *
 *     const fusedlstm_stream_v1* s = PyCapsule_GetPointer(capsule, FUSEDLSTM_STREAM_CAPSULE);
 *     int status = s->step(s->stream, 1, x, y);
 *
 * The struct and the stream live as long as the capsule, even if the Python object is gone: the host keeps a
 * reference to the capsule while it may still call, and drops it with the interpreter lock held.
 *
 * Any one thread at a time may call. A call that meets another one on the same stream, from Python or from
 * here, does nothing and returns FUSEDLSTM_STREAM_BUSY; it never waits. Subnormals are flushed to zero during
 * a call, and the thread's floating-point mode is put back. */
#ifndef FUSEDLSTM_STREAM_H
#define FUSEDLSTM_STREAM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FUSEDLSTM_STREAM_CAPSULE "fusedlstm.stream.v1"

enum {                        /* fusedlstm_stream_v1.dtype */
       FUSEDLSTM_FLOAT32 = 0, /* x and y are float */
       FUSEDLSTM_FLOAT64 = 1  /* x and y are double */
};

enum { /* what step and reset return */
       FUSEDLSTM_STREAM_OK = 0,
       FUSEDLSTM_STREAM_BUSY = 1, /* another call is running: nothing done */
       FUSEDLSTM_STREAM_ROWS = 2  /* the stream has another number of rows, or no such row: nothing done */
};

typedef struct fusedlstm_stream_v1 {
  uint32_t version; /* 1 */
  uint32_t dtype;
  int64_t input_size;  /* I */
  int64_t hidden_size; /* H */
  int64_t num_layers;  /* L */
  int64_t capacity;    /* most rows */
  void* stream;        /* first argument of the functions below */
  /* One step of all rows: x (rows, I) in, y (rows, H) out, both dense; y is written last, so it may be x.
   * `rows` is what the caller's arrays hold, and must be the number of rows of the stream. */
  int (*step)(void* stream, int64_t rows, const void* x, void* y);
  /* Sets the state of one row, counted from 0, to zero. */
  int (*reset)(void* stream, int64_t row);
} fusedlstm_stream_v1;

#ifdef __cplusplus
}
#endif

#endif
