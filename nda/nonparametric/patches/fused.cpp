// Posterior masses of patches by box filters, 16 train images (8 in double precision) side by side.
//
// For a query patch u and a patch v of a train image at the same displacement, |x_u - y_v|^2 = |x_u|^2 + |y_v|^2 - 2 <x_u, y_v>. The first term is
// the same for all v and cancels in the posterior. The second does not depend on the query. The third, along one displacement, is a box filter
// of the product of the query and the shifted train image. A box filter needs one addition and one subtraction per axis whatever the window:
//
//     box(i + 1) = box(i) + new row - old row
//
// Running sums of floats drift, and the three terms nearly cancel where it matters most. So everything is added as *integers*: logits are fixed-point
// numbers, in bits (powers of two), with `bits` binary digits after the point. Integer sums are exact in any order, wrap harmlessly, and what remains is
// the rounding of single products, which the caller bounds (fused.py). A logit's whole part is then a shift and its fraction a mask: 2^-d is a polynomial
// and an addition to the exponent.
//
// One block of train images meets one query at a time. `state[k][j][m]` holds the sums of the windows at row i, columns j of the query and row k, column m
// of the train image; going from i to i+1 moves it down the diagonal, (i, k) -> (i+1, k+1). The sums of one query patch, over all k and m, are then there
// at once, so that the best of them, their total and the sum of the `keep` largest weights per image need no further memory. Patches whose weight is below
// 2^-cut of the best one so far are skipped. The coarse scale is the same on pooled images, with windows that take every second pixel (`step` = 2).
// Where windows meet only their own position along one axis, there is one diagonal; along both axes, one displacement and an ordinary box filter.
//
// The 16 numbers of a pixel lie in one register with AVX-512, in two with AVX2, in four elsewhere. What is done to a number does not depend on that, nor
// does the order of a sum, so that all instruction sets with fused multiply-add give the same bits.
//
// Operations per 16 pairs of patches (32 x 32 pixels, three channels, window 7, interior: 26 x 26 positions), in vectors of 16:
//   sums        1.36 cells of (pixel of the query, pixel of the train image) at 6 multiply-adds, 1 conversion, 3 additions, and 0.76 at the ends of the
//               diagonals, where sums begin, at 3 multiply-adds, 1 conversion, 1 addition: 17
//   logits      1 addition, 1 minimum, 1 comparison, 1 count; to choose the largest, 1 conversion, 1 addition, 1 multiply-add for mean and variance: 7
//   choosing    3.3 passes of 2 comparisons and 2 counts, of which 1.3 also collect what is in between, with 3 operations: 17
//   weights     5 multiply-adds, 5 integer operations, 1 conversion, 1 minimum, 1 comparison, 3 additions: 16
// Of these 57 the 10 multiply-adds of the sums are what nothing can save. benchmarks/engine.py times them against what a core can do.
//
// Cycles per 16 pairs, measured on one core of an AMD EPYC of family 25, model 17, with AVX-512 at 3.67 GHz: 128 images of 32 x 32 pixels, window 7,
// timestep 300, the 100 largest. Beside them what that core needs at least: it does one multiply-add of 16 numbers per cycle and two additions, but a
// comparison with its count takes 1.5, a store 2, and so does a load that misses the first-level cache, where the 43 kB of one patch's logits do not fit.
//   sums        17   9.4: 1.57 cells at 6 multiply-adds, with the displacements that lie outside the image. Were all state in the first-level cache: 15
//   their start  4   2.5: multiply-adds again
//   logits       9   6: state, |y_v|^2 and logits pass through the second-level cache
//   choosing    12  10: 3.3 passes of two comparisons
//   weights     11   8: 16 operations at half a cycle
// 53 in all, and 36 at least. So this design reaches 53 % of the rate of additions, and would reach 79 % if nothing ever waited. What was tried and changed
// the whole by less than 5 %, or made it slower: half the state, registers of 256 bits, a first guess from every fourth logit, narrowing what is kept in
// every round, prefetching the next row, addresses held in registers (4 % faster). A faster one would have to choose with fewer comparisons.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#if defined(__AVX512F__) && defined(__AVX512DQ__)
#define NATIVE 64
#include <immintrin.h>
#elif defined(__AVX2__)
#define NATIVE 32
#include <immintrin.h>
#else
#define NATIVE 16
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __x86_64__
#define PIN(v) __asm__("" : "+v"(v))  // stays in its register: GCC would rather load it again for every product
#else
#define PIN(v)
#endif
#define INLINE inline __attribute__((always_inline))

namespace {
constexpr int PARTS = 64 / NATIVE;  // registers that hold the 16 (8) numbers of one pixel

struct Narrow {
  using real = float;
  using whole = int32_t;
  typedef float vec __attribute__((vector_size(NATIVE)));
  typedef int32_t ivec __attribute__((vector_size(NATIVE)));
  typedef uint32_t uvec __attribute__((vector_size(NATIVE)));
  static constexpr int lanes = 16, mantissa = 23, terms = 6;
};

struct Wide {
  using real = double;
  using whole = int64_t;
  typedef double vec __attribute__((vector_size(NATIVE)));
  typedef int64_t ivec __attribute__((vector_size(NATIVE)));
  typedef uint64_t uvec __attribute__((vector_size(NATIVE)));
  static constexpr int lanes = 8, mantissa = 52, terms = 14;
};

// What differs between instruction sets. Comparisons give a mask: one bit per lane, or one lane of ones.
#if NATIVE == 64
INLINE Narrow::uvec nearest(Narrow::vec v) { return (Narrow::uvec)_mm512_cvtps_epi32((__m512)v); }
INLINE Wide::uvec nearest(Wide::vec v) { return (Wide::uvec)_mm512_cvtpd_epi64((__m512d)v); }
INLINE Narrow::vec fraction(Narrow::ivec d) { return (Narrow::vec)_mm512_cvtepi32_ps((__m512i)d); }
INLINE Wide::vec fraction(Wide::ivec d) { return (Wide::vec)_mm512_cvtepi64_pd((__m512i)d); }
INLINE __mmask16 less(Narrow::ivec a, Narrow::ivec b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE __mmask8 less(Wide::ivec a, Wide::ivec b) { return _mm512_cmplt_epi64_mask((__m512i)a, (__m512i)b); }
INLINE Narrow::ivec choose(__mmask16 m, Narrow::ivec a, Narrow::ivec b) { return (Narrow::ivec)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
INLINE Wide::ivec choose(__mmask8 m, Wide::ivec a, Wide::ivec b) { return (Wide::ivec)_mm512_mask_blend_epi64(m, (__m512i)b, (__m512i)a); }
INLINE Narrow::ivec count_where(Narrow::ivec n, __mmask16 m) { return (Narrow::ivec)_mm512_mask_sub_epi32((__m512i)n, m, (__m512i)n, _mm512_set1_epi32(-1)); }
INLINE Wide::ivec count_where(Wide::ivec n, __mmask8 m) { return (Wide::ivec)_mm512_mask_sub_epi64((__m512i)n, m, (__m512i)n, _mm512_set1_epi64(-1)); }
INLINE Narrow::vec add_where(Narrow::vec s, __mmask16 m, Narrow::vec w) { return (Narrow::vec)_mm512_mask_add_ps((__m512)s, m, (__m512)s, (__m512)w); }
INLINE Wide::vec add_where(Wide::vec s, __mmask8 m, Wide::vec w) { return (Wide::vec)_mm512_mask_add_pd((__m512d)s, m, (__m512d)s, (__m512d)w); }
INLINE bool any(int m) { return m != 0; }
#else
INLINE Narrow::uvec nearest(Narrow::vec v) {
#if NATIVE == 32
  return (Narrow::uvec)_mm256_cvtps_epi32((__m256)v);
#else
  Narrow::ivec r;
  for (int l = 0; l < Narrow::lanes / PARTS; l++) r[l] = (int32_t)__builtin_rintf(v[l]);
  return (Narrow::uvec)r;
#endif
}
INLINE Wide::vec fraction(Wide::ivec d) {  // 0 <= d < 2^52, put into the mantissa of 2^52
  const double one = 0x1p52;
  return (Wide::vec)(d | (Wide::ivec)(Wide::vec{} + one)) - one;
}
INLINE Wide::uvec nearest(Wide::vec v) {  // in two parts, of 2^30 and of 1, that adding 1.5 * 2^52 rounds
  const Wide::vec big = Wide::vec{} + 0x1.8p52, high = v * 0x1p-30 + big, low = v - (high - big) * 0x1p30 + big;
  return (((Wide::uvec)high - (Wide::uvec)big) << 30) + ((Wide::uvec)low - (Wide::uvec)big);
}
INLINE Narrow::vec fraction(Narrow::ivec d) { return __builtin_convertvector(d, Narrow::vec); }
template <class I> INLINE I less(I a, I b) { return (I)(a < b); }
template <class I> INLINE I choose(I m, I a, I b) { return m ? a : b; }
template <class I> INLINE I count_where(I n, I m) { return n - m; }
template <class V, class I> INLINE V add_where(V s, I m, V w) { return s + (V)(m & (I)w); }
template <class I> INLINE bool any(I m) {
#if NATIVE == 32
  return _mm256_movemask_epi8((__m256i)m) != 0;
#else
  long long r = 0;
  for (unsigned l = 0; l < sizeof m / sizeof m[0]; l++) r |= m[l];
  return r != 0;
#endif
}
#endif

struct Problem {
  int chan, height, width;  // of the padded (and pooled) images
  int taps, step;           // a window takes `taps` pixels per axis, `step` apart
  int keep, bits, images;
  int row0, row1, col0, col1;  // pixels that are not padding
};

template <class T>
struct Sweep {
  using R = typename T::real;
  using I = typename T::whole;
  using vec = typename T::vec;
  using ivec = typename T::ivec;
  using uvec = typename T::uvec;
  using mask = decltype(less(ivec{}, ivec{}));
  static constexpr int GROUP = 4, L = T::lanes;         // displacements that share a pass over the query's pixels
  static constexpr int TILE = NATIVE == 64 ? 4 : 2;     // pixels at a time: TILE * GROUP sums fit the registers
  static constexpr int ROUGH = T::mantissa > 23 ? 11 : 0;  // digits that a guess does not need: what is left fits a real's mantissa
  static constexpr long STATE = 1300000 / 64;           // vectors of state that stay, all or nearly all, in the second-level cache

  // Windows of the query at `rows` x `cols` meet windows of the train image at `train_rows` x `train_cols`, all counted from the image's corner.
  struct Region {
    const R *x;    // scaled by -2
    const vec *y;
    long x_chan, x_row, y_chan, y_row;
    int rows, train_rows, cols, train_cols;
    bool alone;    // every row meets only its own
    int x_first, y_first, content0, content1;  // number of the first pixel row on either side; rows that are not padding
    const uvec *y2;
    long row_stride, col_stride;  // in the map of all positions
    long u;
  };
  struct Output {  // per position
    I *best;         // smallest logit so far
    double *total;   // weight of all patches, relative to it
    R *top;          // [position, block, lane]: weight of the `keep` largest per image, relative to
    I *reference;    // [position, block]: the smallest logit when that block was met
    long blocks, block;
    int valid;       // lanes that hold an image
  };

  const Problem &p;
  const R *polynomial;  // of 2^-f, f in [0, 1) counted in units of the last bit
  const I cut;
  uvec *state, *line;
  ivec *logits, *kept;
  vec guess[PARTS];  // how many standard deviations above the mean the `keep`-th logit was last

  static long row_length(long train_cols) { return train_cols + GROUP - 1; }  // displacements outside the image write into the margins between rows
  static int columns(long train_rows, long cols, long train_cols) {
    const long most = std::max(1l, std::min(cols, STATE / (train_rows * row_length(train_cols)))), parts = (cols + most - 1) / most;
    return (int)((cols + parts - 1) / parts);
  }

  static INLINE vec rough(ivec d) {
    if (ROUGH == 0) return __builtin_convertvector(d, vec);
    return (vec)((d >> ROUGH) + (ivec)(vec{} + (R)0x1.8p52)) - (R)0x1.8p52;
  }
  static INLINE ivec precise(vec v) { return (ivec)nearest(v) << ROUGH; }
  static INLINE ivec least(ivec a, ivec b) { return a < b ? a : b; }
  static INLINE ivec most(ivec a, ivec b) { return a > b ? a : b; }

  INLINE vec weight(ivec d) const {  // 2^-d
    const vec f = fraction(d & (((I)1 << p.bits) - 1));
    vec w = f * polynomial[T::terms - 1] + polynomial[T::terms - 2];
    for (int i = T::terms - 3; i >= 0; i--) w = w * f + polynomial[i];
    return (vec)((uvec)w - (((uvec)d >> p.bits) << T::mantissa));
  }

  // a += or -= the products of C neighbouring pixels of the query and those of the train image at GROUP displacements.
  template <int C, bool MINUS>
  static INLINE void multiply(vec (&a)[C][GROUP], const R *x, const vec *y) {
    vec s[C + GROUP - 1];
#pragma GCC unroll 8
    for (int i = 0; i < C + GROUP - 1; i++) {
      vec v = y[i * PARTS];
      PIN(v);
      s[i] = v;
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; c++)
#pragma GCC unroll 8
      for (int q = 0; q < GROUP; q++) a[c][q] = MINUS ? a[c][q] - x[c] * s[c + q] : a[c][q] + x[c] * s[c + q];
  }

  // The new row of windows: its products less those of the row that leaves, or the products of `count` rows if FRESH.
  template <int C, int STEP, bool FRESH, int CHAN>
  INLINE void cells(uvec (&h)[C][GROUP], const Region &g, const R *x, const vec *y, int count) const {
    const long x_left = p.taps * STEP * g.x_row, y_left = p.taps * STEP * g.y_row * PARTS;
    for (int n = 0; n < (FRESH ? count : 1); n++) {
      vec a[C][GROUP] = {};
#pragma GCC unroll 4
      for (int ch = 0; ch < (CHAN ? CHAN : p.chan); ch++) {
        const R *xn = x + ch * g.x_chan + n * STEP * g.x_row;
        const vec *yn = y + (ch * g.y_chan + n * STEP * g.y_row) * PARTS;
        multiply<C, false>(a, xn, yn);
        if (!FRESH) multiply<C, true>(a, xn - x_left, yn - y_left);
      }
#pragma GCC unroll 8
      for (int c = 0; c < C; c++)
#pragma GCC unroll 8
        for (int q = 0; q < GROUP; q++) h[c][q] = FRESH ? h[c][q] + nearest(a[c][q]) : nearest(a[c][q]);
    }
  }

  // dst = src + horizontal sums of the new row of windows, at all displacements of columns: differences of running sums, which lie in `line`.
  template <int STEP, bool FRESH, int CHAN>
  void add_row(uvec *dst, const uvec *src, const Region &g, int J, const R *x, const vec *y, int count) {
    constexpr int WIDE = FRESH ? 2 : TILE;
    const int M = g.train_cols, span = (p.taps - 1) * STEP;
    const long length = row_length(M), diagonal = (length + 1) * PARTS;
    for (int part = 0; part < PARTS; part++)
      for (int dx = 1 - J; dx < M; dx += GROUP) {
        const int first = std::max(0, 1 - GROUP - dx), last = std::min(J, M - dx), stop = last - first + span;
        const long at = (first * (length + 1) + dx + GROUP - 1) * PARTS + part;
        const R *xs = x + first;
        const vec *ys = y + (first + dx) * PARTS + part;
        uvec *to = dst + at, sums[STEP][GROUP] = {};
        const uvec *from = src + at;
        uvec *l = (uvec *)line;
        for (int q = 0; q < STEP * GROUP; q++) l[q] = uvec{};
        auto tile = [&](auto width, auto out, int n) __attribute__((always_inline)) {
          constexpr int C = decltype(width)::value;
          uvec h[C][GROUP] = {};
          cells<C, STEP, FRESH, CHAN>(h, g, xs + n, ys + n * PARTS, count);
#pragma GCC unroll 8
          for (int c = 0; c < C; c++)
#pragma GCC unroll 8
            for (int q = 0; q < GROUP; q++) {
              uvec &sum = sums[c % STEP][q];
              sum += h[c][q];
              l[(n + c + STEP) * GROUP + q] = sum;
              if (decltype(out)::value) {
                const long k = (n + c - span) * diagonal + q * PARTS;
                to[k] = (FRESH ? uvec{} : from[k]) + sum - l[(n + c - span) * GROUP + q];
              }
            }
        };
        auto stretch = [&](auto out, int n, int end) __attribute__((always_inline)) {
          for (; n + WIDE <= end; n += WIDE) tile(std::integral_constant<int, WIDE>(), out, n);
          if (WIDE > 2 && n + 2 <= end) tile(std::integral_constant<int, 2>(), out, n), n += 2;
          if (n < end) tile(std::integral_constant<int, 1>(), out, n);
        };
        stretch(std::false_type(), 0, span);
        stretch(std::true_type(), span, stop);
      }
  }

  // How many of n logits are below a, and below b; if COLLECT also those between, to `kept`, where nothing else counts. Returns their number.
  template <bool COLLECT>
  int below(const ivec *values, int stride, int n, ivec a, ivec b, ivec &below_a, ivec &below_b) {
    const ivec never = ivec{} + std::numeric_limits<I>::max();
    int left = 0;
    ivec ca = {}, cb = {};
    for (int v = 0; v < n; v++) {
      const ivec d = values[v * stride];
      const mask in_a = less(d, a), in_b = less(d, b);
      ca = count_where(ca, in_a);
      cb = count_where(cb, in_b);
      if (COLLECT) {
        const mask in = in_b & ~in_a;
        kept[left] = choose(in, d, never);
        left += any(in);
      }
    }
    below_a += ca;
    below_b += cb;
    return left;
  }

  // Per lane, tau such that `keep` of the n logits are below it, or fewer and `extra` of those that equal it are to be added: by counting. The first
  // guess are mean and standard deviation of the logits and where tau was between them at the last patch. The counts on both sides of it give
  // the next, now narrow, and only the few logits in between are looked at from then on. low: the smallest; far, count: a bound and how many are below.
  ivec threshold(int part, int n, ivec low, ivec far, ivec count, vec mean, vec deviation, ivec &extra) {
    const ivec keep = ivec{} + (I)p.keep;
    ivec lo = low, hi = far, below_lo = {}, below_hi = count, forgotten = {};
    const ivec *values = logits + part;
    int stride = PARTS;
    vec each = {}, from = {}, passed = {};
    for (int round = 0;; round++) {
      const ivec width = hi - lo;
      const mask open = less(keep, below_hi) & less(ivec{} + 1, width);
      if (!any(open)) break;
      ivec a, b;
      const bool all = values != kept;
      if (round == 0) {
        a = precise(mean + (guess[part] - (R)0.08) * deviation);
        b = precise(mean + (guess[part] + (R)0.08) * deviation);
      } else if (round > 3 && round % 2) {
        a = lo + precise(rough(width) * (R)0.33);
        b = hi - precise(rough(width) * (R)0.33);
      } else {
        if (round > 1) {
          from = rough(lo);
          passed = __builtin_convertvector(below_lo, vec);
          each = rough(width) / __builtin_convertvector(below_hi - below_lo, vec);
        }
        const vec at = from + (__builtin_convertvector(keep, vec) - passed) * each, margin = each * (R)(all ? 6 : 0.5);
        a = precise(at - margin);
        b = precise(at + margin);
      }
      a = choose(open, least(most(a, lo + 1), hi - 1), hi);
      b = choose(open, least(most(b, a), hi - 1), hi);
      ivec below_a = forgotten, below_b = forgotten;
      int left = 0;
      if (all && round) left = below<true>(values, stride, n, a, b, below_a, below_b);
      else below<false>(values, stride, n, a, b, below_a, below_b);
      if (round == 0) {  // the density around the guess
        from = rough(a);
        passed = __builtin_convertvector(below_a, vec);
        each = rough(b - a) / __builtin_convertvector(most(below_b - below_a, ivec{} + 1), vec);
      }
      const mask few_a = less(below_a, keep), few_b = less(below_b, keep), within = few_a & ~few_b;
      hi = choose(few_a, choose(few_b, hi, b), a);
      below_hi = choose(few_a, choose(few_b, below_hi, below_b), below_a);
      lo = choose(open & few_b, b, choose(open & few_a, a, lo));  // lanes that are done forget nothing
      below_lo = choose(open & few_b, below_b, choose(open & few_a, below_a, below_lo));
      if (all && round && !any(open & ~within)) {
        values = kept;
        stride = 1;
        n = left;
        forgotten = below_lo;
      }
    }
    const mask more = less(keep, below_hi);
    extra = choose(more, keep - below_lo, ivec{});
    const ivec tau = choose(more, lo, hi);
    const vec z = (rough(tau) - mean) / deviation;
    guess[part] = z > (R)-5 ? (z < (R)5 ? z : (R)5 + vec{}) : (R)-5 + vec{};
    return tau;
  }

  // All logits of this block for one query patch, in its column of the state, less those that are `far` in every lane; the smallest, how many are not far,
  // and, if some of them are to be chosen, the sums of all and of their squares.
  template <bool SOME>
  int gather(const uvec *sums, long stride, const Region &g, const uvec *y2, ivec far, ivec *low, ivec *count, vec *sum, vec *squares) {
    ivec smallest[PARTS], some[PARTS] = {}, *next = logits;  // not in memory, where a compiler would fear that `logits` overwrites them
    vec total[PARTS] = {}, total2[PARTS] = {};
    for (ivec &v : smallest) v = far;
    for (int k = 0; k < g.train_rows; k++) {
      const uvec *s = sums + k * stride, *y = y2 + k * g.row_stride * PARTS;
      const long step = g.col_stride * PARTS;
      for (int m = g.train_cols; m > 0; m--, s += PARTS, y += step) {
        bool near = false;
#pragma GCC unroll 4
        for (int part = 0; part < PARTS; part++) {
          const ivec d = (ivec)(s[part] + y[part]);
          const mask in = less(d, far);
          next[part] = d;
          smallest[part] = least(d, smallest[part]);
          near |= any(in);
          if (!SOME) continue;
          const vec f = rough(d);
          some[part] = count_where(some[part], in);
          total[part] += f;
          total2[part] += f * f;
        }
        next += near ? PARTS : 0;
      }
    }
    for (int part = 0; part < PARTS; part++) low[part] = smallest[part], count[part] = some[part], sum[part] = total[part], squares[part] = total2[part];
    return (next - logits) / PARTS;
  }

  void finish(const uvec *sums, long stride, const Region &g, const uvec *y2, long u, const Output &out) {
    const I never = std::numeric_limits<I>::max();
    const int all = g.train_rows * g.train_cols;
    I &best = out.best[u];
    const I before = best > never - cut ? never : best + cut;
    ivec low[PARTS], count[PARTS];
    vec mean[PARTS], deviation[PARTS];
    const bool some = p.keep < all;
    int n = some ? gather<true>(sums, stride, g, y2, ivec{} + before, low, count, mean, deviation)
                 : gather<false>(sums, stride, g, y2, ivec{} + before, low, count, mean, deviation);
    I smallest = never;
    for (const ivec &v : low)
      for (int l = 0; l < L / PARTS; l++) smallest = std::min<I>(smallest, v[l]);
    double &total = out.total[u];
    R *top = out.top + (u * out.blocks + out.block) * L;
    if (smallest < best) {
      total *= std::exp2(-std::ldexp((double)best - (double)smallest, -p.bits));
      best = smallest;
    }
    out.reference[u * out.blocks + out.block] = best;
    const I limit = best > never - cut ? never : best + cut;
    if (smallest >= limit) {
      std::fill(top, top + L, (R)0);
      return;
    }
    const ivec far = ivec{} + limit, base = ivec{} + best;
    if (limit < before) {
      int left = 0;
      for (ivec &v : count) v = ivec{};
      for (int v = 0; v < n; v++) {
        bool near = false;
        for (int part = 0; part < PARTS; part++) {
          const ivec d = logits[v * PARTS + part];
          const mask in = less(d, far);
          count[part] = count_where(count[part], in);
          logits[left * PARTS + part] = d;
          near |= any(in);
        }
        left += near;
      }
      n = left;
    }
    R weights[L];
    for (int part = 0; part < PARTS; part++) {
      ivec tau = far, extra = {};
      if (some && any(less(ivec{} + (I)p.keep, count[part]))) {
        const vec m = mean[part] / (R)all, variance = deviation[part] / (R)all - m * m;
        vec d;
        for (int l = 0; l < L / PARTS; l++) d[l] = std::sqrt(std::max(variance[l], (R)1));
        tau = threshold(part, n, low[part], far, count[part], m, d, extra);
      }
      vec sum = {}, largest = {};
      for (int v = 0; v < n;) {
        vec s = {}, t = {};  // short sums of floats, then sums of sums
        for (const int stop = std::min(n, v + 32); v < stop; v++) {
          const ivec d = logits[v * PARTS + part];
          const vec w = weight(least(d, far) - base);
          s += w;
          t = add_where(t, less(d, tau), w);
        }
        sum += s;
        largest += t;
      }
      largest += fraction(extra) * weight(tau - base);
      std::memcpy(top + part * (L / PARTS), &largest, sizeof largest);
      std::memcpy(weights + part * (L / PARTS), &sum, sizeof sum);
    }
    for (int l = 0; l < out.valid; l++) total += weights[l];
  }

  template <int STEP, int CHAN>
  void region(const Region &g, const Output &out) {
    const int span = (p.taps - 1) * STEP, K = g.train_rows, J = columns(K, g.cols, g.train_cols);
    const long length = row_length(g.train_cols);
    for (vec &v : guess) v = vec{} - 1;
    for (int j0 = 0; j0 < g.cols; j0 += J) {
      const int cols = std::min(J, g.cols - j0);
      const long size = cols * length * PARTS;
      for (int phase = 0; phase < STEP; phase++)
        for (int i = phase; i < g.rows; i += STEP) {
          for (int row = K - 1; row >= 0; row--) {
            const int k = g.alone ? i : row;
            uvec *a = state + row * size;
            if (i >= STEP && k >= STEP) {
              const uvec *before = g.alone ? a : a - STEP * size;
              add_row<STEP, false, CHAN>(a, before, g, cols, g.x + j0 + (i + span) * g.x_row, g.y + (k + span) * g.y_row * PARTS, 1);
              continue;
            }
            // padding is zero: its products are nothing
            const int above = std::max(0, g.content0 - std::min(g.x_first + i, g.y_first + k)), r = (above + STEP - 1) / STEP * STEP;
            const int end = std::min(span + 1, g.content1 - std::max(g.x_first + i, g.y_first + k));
            const int count = std::max(0, (end - r + STEP - 1) / STEP);
            add_row<STEP, true, CHAN>(a, a, g, cols, g.x + j0 + (i + r) * g.x_row, g.y + (k + r) * g.y_row * PARTS, count);
          }
          const uvec *y2 = g.y2 + (g.alone ? i * g.row_stride * PARTS : 0);
          for (int j = 0; j < cols; j++)
            finish(state + (j * length + GROUP - 1) * PARTS, size, g, y2, g.u + i * g.row_stride + (j0 + j) * g.col_stride, out);
        }
    }
  }
};

void *scratch(size_t bytes) {
  const size_t page = 1 << 21;
  void *memory = std::aligned_alloc(page, (bytes + page - 1) / page * page);
#ifdef __linux__
  if (memory) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  return memory;
}

// Box sums at all positions of fixed-point numbers per pixel, `value(pixel, part)`: one filter over rows and one over columns.
template <class S, class F>
void boxes(F value, const Problem &p, typename S::uvec *pixels, typename S::uvec *sums, typename S::uvec *result) {
  using uvec = typename S::uvec;
  const long H = p.height, W = p.width, step = p.step, span = (p.taps - 1) * step, positions = W - span;
  for (long i = 0; i < H * W; i++)
    for (int part = 0; part < PARTS; part++) pixels[i * PARTS + part] = value(i, part);
  auto box = [&](uvec *to, const uvec *from, long i, long stride, long to_stride) {  // the i-th sum along one axis
    for (int part = 0; part < PARTS; part++, to++, from++) {
      if (i >= step) {
        *to = to[-step * to_stride * PARTS] + from[span * stride * PARTS] - from[-step * stride * PARTS];
        continue;
      }
      uvec v = {};
      for (long r = 0; r <= span; r += step) v += from[r * stride * PARTS];
      *to = v;
    }
  };
  for (long r = 0; r < H; r++)
    for (long j = 0; j < positions; j++) box(sums + (r * positions + j) * PARTS, pixels + (r * W + j) * PARTS, j, 1, 1);
  for (long i = 0; i < H - span; i++)
    for (long j = 0; j < positions; j++) box(result + (i * positions + j) * PARTS, sums + (i * positions + j) * PARTS, i, positions, positions);
}

// x [chan, height, width], scaled by -2 * scale; y [block, chan, height, width, lane]; rows [n_rows, 5]: ranges of positions that meet, of the train
// image and then of the query, and whether each meets only its own; cols [n_cols, 3]: one range for both, and the same. The outputs are those of `Output`.
template <class T, class R = typename T::real, class I = typename T::whole>
int run(const R *x, const R *y, const Problem &p, const int *rows, int n_rows, const int *cols, int n_cols, const R *polynomial, double scale, I cut,
        I *best, double *total, R *top, I *reference) {
  using S = Sweep<T>;
  using vec = typename T::vec;
  using uvec = typename T::uvec;
  const int L = T::lanes, blocks = (p.images + L - 1) / L, span = (p.taps - 1) * p.step;
  const long plane = (long)p.height * p.width, height = p.height - span, width = p.width - span, longest = std::max(p.height, p.width);
  long state = 0;
  for (int a = 0; a < n_rows; a++)
    for (int b = 0; b < n_cols; b++) {
      int K = rows[5 * a + 4] ? 1 : rows[5 * a + 1] - rows[5 * a], M = cols[3 * b + 1] - cols[3 * b];
      if (cols[3 * b + 2]) M = std::exchange(K, 1);
      state = std::max(state, (long)S::columns(K, M, M) * K * S::row_length(M));
      state = std::max(state, (long)S::columns(1, M, M) * S::row_length(M));
    }
  const long turned = p.chan * plane + 4 * S::GROUP, positions = height * width;
  const long vectors = state + S::GROUP + (longest + 4) * S::GROUP + 4 * positions + plane + p.height * width + turned;
  uvec *memory = (uvec *)scratch(vectors * 64 + turned * sizeof(R)), *free_part = memory;
  if (!memory) return 1;
  auto take = [&](long n) { return (free_part += n * PARTS) - n * PARTS; };
  S s{p, polynomial, cut, take(state + S::GROUP), take((longest + 4) * S::GROUP), (typename S::ivec *)take(positions), (typename S::ivec *)take(positions), {}};
  uvec *pixels = take(plane), *sums = take(p.height * width), *y2 = take(positions), *own = take(positions);
  vec *y_turned = (vec *)take(turned) + 2 * S::GROUP * PARTS;
  R *x_turned = (R *)free_part;
  for (int block = 0; block < blocks; block++) {
    const vec *images = (const vec *)y + block * p.chan * plane * PARTS;
    boxes<S>([&](long i, int part) {
      vec v = {};
      for (int ch = 0; ch < p.chan; ch++) {
        const vec w = images[(ch * plane + i) * PARTS + part];
        v += w * w;
      }
      return nearest(v * (R)scale);
    }, p, pixels, sums, y2);
    bool own_known = false;
    const typename S::Output out{best, total, top, reference, blocks, block, std::min(L, p.images - block * L)};
    for (int a = 0; a < n_rows; a++)
      for (int b = 0; b < n_cols; b++) {
        const int *r = rows + 5 * a, c0 = cols[3 * b], c1 = cols[3 * b + 1], W = p.width;
        const bool r_alone = r[4], c_alone = cols[3 * b + 2];
        typename S::Region g{x + (long)r[2] * W + c0, images + ((long)r[0] * W + c0) * PARTS, plane, W, plane, W,
                             r[3] - r[2], r_alone ? 1 : r[1] - r[0], c1 - c0, c1 - c0, r_alone,
                             r[2], r[0], p.row0, p.row1, y2 + (r[0] * width + c0) * PARTS, width, 1, r[2] * width + c0};
        if (r_alone && c_alone) {  // displacement 0 only: the box sums of the products of pixels
          if (!own_known)
            boxes<S>([&](long i, int part) {
              vec v = {};
              for (int ch = 0; ch < p.chan; ch++) v += x[ch * plane + i] * images[(ch * plane + i) * PARTS + part];
              return nearest(v);
            }, p, pixels, sums, own);
          own_known = true;
          g.train_cols = 1;
          for (int i = r[2]; i < r[3]; i++)
            for (int j = c0; j < c1; j++) s.finish(own + (i * width + j) * PARTS, 0, g, y2 + (i * width + j) * PARTS, i * width + j, out);
          continue;
        }
        if (c_alone) {  // columns turned into rows, since a row keeps all displacements busy
          const int h = c1 - c0 + span, w = r[1] - r[0] + span;
          for (int ch = 0; ch < p.chan; ch++)
            for (int i = 0; i < h; i++)
              for (int j = 0; j < w; j++) {
                for (int part = 0; part < PARTS; part++)
                  y_turned[((ch * h + i) * w + j) * PARTS + part] = images[(ch * plane + (long)(r[0] + j) * W + c0 + i) * PARTS + part];
                x_turned[(ch * h + i) * w + j] = x[ch * plane + (long)(r[0] + j) * W + c0 + i];
              }
          g = {x_turned + r[2] - r[0], y_turned, (long)h * w, w, (long)h * w, w, c1 - c0, 1, r[3] - r[2], r[1] - r[0], true,
               c0, c0, p.col0, p.col1, g.y2, 1, width, g.u};
        }
        if (p.step == 1) p.chan == 3 ? s.template region<1, 3>(g, out) : s.template region<1, 0>(g, out);
        else p.chan == 3 ? s.template region<2, 3>(g, out) : s.template region<2, 0>(g, out);
      }
  }
  std::free(memory);
  return 0;
}
}  // namespace

extern "C" {
#define NDA_RUN(name, T)                                                                                                                            \
  int name(const T::real *x, const T::real *y, const int *problem, const int *rows, int n_rows, const int *cols, int n_cols,                        \
           const T::real *polynomial, double scale, T::whole cut, T::whole *best, double *total, T::real *top, T::whole *reference) {               \
    Problem p;                                                                                                                                      \
    std::memcpy(&p, problem, sizeof p);                                                                                                             \
    return run<T>(x, y, p, rows, n_rows, cols, n_cols, polynomial, scale, cut, best, total, top, reference);                                        \
  }
NDA_RUN(narrow, Narrow)
NDA_RUN(wide, Wide)
}
