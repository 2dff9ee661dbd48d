// The most that one core does: independent multiply-adds of floats, and additions of 32-bit integers, in registers. Seconds for `rounds` of them.
#include <ctime>
#include <cstdint>
#ifdef __AVX512F__
#define NATIVE 64
#elif defined(__AVX2__)
#define NATIVE 32
#else
#define NATIVE 16
#endif
typedef float vec __attribute__((vector_size(NATIVE)));
typedef int32_t ivec __attribute__((vector_size(NATIVE)));
static constexpr int CHAINS = 10;  // enough to hide the latency, few enough for 16 registers

template <class V, class F>
static double time_of(long rounds, V start, F step) {
  V a = start, b = start, c = start, d = start, e = start, f = start, g = start, h = start, i = start, j = start;
  const std::clock_t began = std::clock();
  for (long n = 0; n < rounds; n++) {
#define STEP(v) v = step(v); __asm__ volatile("" : "+v"(v))
    STEP(a); STEP(b); STEP(c); STEP(d); STEP(e); STEP(f); STEP(g); STEP(h); STEP(i); STEP(j);
  }
  return double(std::clock() - began) / CLOCKS_PER_SEC;  // of the processor: others may be waiting for it too
}

extern "C" {
int numbers_per_round() { return CHAINS * NATIVE / 4; }
double multiply_adds(long rounds) { return time_of(rounds, vec{} + 1, [](vec v) { return v * 0.5f + 0.5f; }); }
double additions(long rounds) { return time_of(rounds, ivec{}, [](ivec v) { return v + (ivec{} + 3); }); }
}
