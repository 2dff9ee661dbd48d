// Posterior masses of patches by box filters, 16 train images (8 in double precision) in the lanes of a vector.
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

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {
struct Narrow {
  using real = float;
  using whole = int32_t;
  typedef float vec __attribute__((vector_size(64)));
  typedef int32_t ivec __attribute__((vector_size(64)));
  typedef uint32_t uvec __attribute__((vector_size(64)));
  static constexpr int lanes = 16, mantissa = 23, terms = 6;
};

struct Wide {
  using real = double;
  using whole = int64_t;
  typedef double vec __attribute__((vector_size(64)));
  typedef int64_t ivec __attribute__((vector_size(64)));
  typedef uint64_t uvec __attribute__((vector_size(64)));
  static constexpr int lanes = 8, mantissa = 52, terms = 14;
};

inline Narrow::uvec nearest(Narrow::vec v) {
#ifdef __AVX512F__
  return (Narrow::uvec)_mm512_cvtps_epi32((__m512)v);
#else
  Narrow::ivec r;
  for (int l = 0; l < Narrow::lanes; l++) r[l] = (int32_t)__builtin_rintf(v[l]);
  return (Narrow::uvec)r;
#endif
}

inline Wide::uvec nearest(Wide::vec v) {
#ifdef __AVX512DQ__
  return (Wide::uvec)_mm512_cvtpd_epi64((__m512d)v);
#else
  Wide::ivec r;
  for (int l = 0; l < Wide::lanes; l++) r[l] = (int64_t)__builtin_rint(v[l]);
  return (Wide::uvec)r;
#endif
}

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
  static constexpr int GROUP = 4, L = T::lanes;  // displacements that share a pass over the query's pixels
  static constexpr long STATE = 1200000 / 64;    // vectors of state that stay in a second-level cache of 2 MB

  // Windows of the query at `rows` x `cols` meet windows of the train image at `train_rows` x `train_cols`, all counted from the image's corner.
  struct Region {
    const R *x;    // scaled by -2
    const vec *y;
    long x_chan, x_row, y_chan, y_row;
    int rows, train_rows, cols, train_cols;
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

  static long row_length(long train_cols) { return train_cols + 2 * (GROUP - 1); }  // displacements outside the image write into the margins
  static int columns(long train_rows, long cols, long train_cols) {
    return (int)std::max(1l, std::min(cols, STATE / (train_rows * row_length(train_cols))));
  }

  static bool any(ivec mask) {
#ifdef __AVX512F__
    return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask);
#else
    I r = 0;
    for (int l = 0; l < L; l++) r |= mask[l];
    return r;
#endif
  }

  vec weight(ivec d) const {  // 2^-d
    const vec f = __builtin_convertvector(d & (((I)1 << p.bits) - 1), vec);
    vec w = f * polynomial[T::terms - 1] + polynomial[T::terms - 2];
    for (int i = T::terms - 3; i >= 0; i--) w = w * f + polynomial[i];
    return (vec)((ivec)w - ((d >> p.bits) << T::mantissa));
  }

  // dst = src + horizontal sums of a new pair of pixel rows (- those of an old pair), at all displacements of columns.
  template <int STEP, bool OLD>
  void add_row(uvec *dst, const uvec *src, const Region &g, int J, const R *xn, const vec *yn, const R *xo, const vec *yo) {
    const int M = g.train_cols, length = row_length(M), span = (p.taps - 1) * STEP;
    for (int dx = 1 - J; dx < M; dx += GROUP) {
      const int first = std::max(0, 1 - GROUP - dx), last = std::min(J, M - dx);
      for (int c = first; c < last + span; c++) {
        vec a[GROUP] = {};
        for (int ch = 0; ch < p.chan; ch++) {
          const vec *y = yn + ch * g.y_chan + c + dx;
          const R x = xn[ch * g.x_chan + c];
#pragma GCC unroll 4
          for (int q = 0; q < GROUP; q++) a[q] += x * y[q];
          if (OLD) {
            const vec *z = yo + ch * g.y_chan + c + dx;
            const R w = xo[ch * g.x_chan + c];
#pragma GCC unroll 4
            for (int q = 0; q < GROUP; q++) a[q] -= w * z[q];
          }
        }
#pragma GCC unroll 4
        for (int q = 0; q < GROUP; q++) line[c * GROUP + q] = nearest(a[q]);
      }
      for (int phase = 0; phase < STEP; phase++) {
        uvec h[GROUP] = {};
        for (int c = first + phase; c < first + phase + span; c += STEP)
          for (int q = 0; q < GROUP; q++) h[q] += line[c * GROUP + q];
        for (int j = first + phase; j < last; j += STEP) {
          const long at = (long)j * length + j + dx + GROUP - 1;
#pragma GCC unroll 4
          for (int q = 0; q < GROUP; q++) {
            h[q] += line[(j + span) * GROUP + q];
            dst[at + q] = src[at + q] + h[q];
            h[q] -= line[j * GROUP + q];
          }
        }
      }
    }
  }

  // Per lane, tau such that `keep` of the n logits are below it, or fewer and `extra` of those that equal it are to be added: bisection by counting,
  // guided by the counts. low: the smallest; far, count: a bound and how many are below; guess: distance of tau from low at the neighbouring patch.
  ivec threshold(int n, ivec low, ivec far, ivec count, ivec &guess, ivec &extra) {
    const I keep = p.keep;
    const ivec never = ivec{} + std::numeric_limits<I>::max();
    ivec lo = low, hi = far, below_lo = {}, below_hi = count, forgotten = {};
    const ivec *values = logits;
    for (int round = 0;; round++) {
      ivec mid = hi;
      long between = 0;
      bool open = false;
      for (int l = 0; l < L; l++) {
        const I width = hi[l] - lo[l];
        if (below_hi[l] <= keep || width <= 1) continue;
        open = true;
        between += below_hi[l] - below_lo[l];
        I at = (I)((R)(keep - below_lo[l]) / (R)(below_hi[l] - below_lo[l]) * (R)width);
        if (round % 4 == 3) at = width / 2;
        if (round == 0 && guess[l] > 0) at = guess[l];
        mid[l] = lo[l] + std::min<I>(std::max<I>(at, 1), width - 1);
      }
      if (!open) break;
      if (2 * between < n) {  // most vectors hold nothing between lo and hi: go on with the others
        int left = 0;
        for (int v = 0; v < n; v++) {
          const ivec d = values[v], in = (d >= lo) & (d < hi);
          kept[left] = in ? d : never;
          left += any(in);
        }
        values = kept;
        n = left;
        forgotten = below_lo;
      }
      ivec c = forgotten;
      for (int v = 0; v < n; v++) c = values[v] < mid ? c + 1 : c;
      const ivec enough = (c >= keep) & (hi > mid), few = (c < keep) & (lo < mid);
      hi = enough ? mid : hi;
      below_hi = enough ? c : below_hi;
      lo = few ? mid : lo;
      below_lo = few ? c : below_lo;
    }
    guess = hi - low;
    const ivec exact = below_hi <= keep;
    extra = exact ? ivec{} : keep - below_lo;
    return exact ? hi : lo;
  }

  // All patches of this block for one query patch: its column of the state -> best, total, top.
  void finish(const uvec *sums, long stride, const Region &g, long u, const Output &out, ivec &guess) {
    const I never = std::numeric_limits<I>::max();
    ivec low = ivec{} + never, *next = logits;
    for (int k = 0; k < g.train_rows; k++)
      for (int m = 0; m < g.train_cols; m++) {
        const ivec d = (ivec)(sums[k * stride + m] + g.y2[k * g.row_stride + m * g.col_stride]);
        *next++ = d;
        low = d < low ? d : low;
      }
    I least = low[0], &best = out.best[u];
    double &total = out.total[u];
    vec &top = *(vec *)(out.top + (u * out.blocks + out.block) * L);
    for (int l = 1; l < L; l++) least = std::min<I>(least, low[l]);
    if (least < best) {
      total *= std::exp2(-std::ldexp((double)best - (double)least, -p.bits));
      best = least;
    }
    out.reference[u * out.blocks + out.block] = best;
    top = vec{};
    const I limit = best > never - cut ? never : best + cut;
    if (least >= limit) return;
    const ivec far = ivec{} + limit, base = ivec{} + best;
    ivec count = {};
    int n = 0;
    for (int v = 0; v < g.train_rows * g.train_cols; v++) {  // forget positions that matter in no lane
      const ivec d = logits[v], in = d < far;
      count = in ? count + 1 : count;
      logits[n] = d;
      n += any(in);
    }
    ivec tau = far, extra = {};
    if (any(count > (I)p.keep)) tau = threshold(n, low, far, count, guess, extra);
    vec sum = {};
    for (int v = 0; v < n;) {
      vec s = {}, t = {};  // short sums of floats, then sums of sums
      for (const int stop = std::min(n, v + 32); v < stop; v++) {
        const ivec d = logits[v];
        const vec w = weight((d < far ? d : far) - base);
        s += w;
        t += d < tau ? w : vec{};
      }
      sum += s;
      top += t;
    }
    top += __builtin_convertvector(extra, vec) * weight(tau - base);
    for (int l = 0; l < out.valid; l++) total += sum[l];
  }

  template <int STEP>
  void region(const Region &g, const Output &out) {
    const int span = (p.taps - 1) * STEP, K = g.train_rows, J = columns(K, g.cols, g.train_cols);
    const long length = row_length(g.train_cols);
    auto content = [&](int row) { return row >= g.content0 && row < g.content1; };
    for (int j0 = 0; j0 < g.cols; j0 += J) {
      const int cols = std::min(J, g.cols - j0);
      const long size = cols * length;
      const R *x = g.x + j0;
      for (int phase = 0; phase < STEP; phase++)
        for (int i = phase; i < g.rows; i += STEP) {
          for (int k = K - 1; k >= 0; k--) {
            uvec *a = state + k * size;
            if (i >= STEP && k >= STEP) {
              const int old_i = i - STEP, old_k = k - STEP, new_i = i + span, new_k = k + span;
              add_row<STEP, true>(a, a - STEP * size, g, cols, x + new_i * g.x_row, g.y + new_k * g.y_row, x + old_i * g.x_row, g.y + old_k * g.y_row);
              continue;
            }
            std::memset((void *)a, 0, size * sizeof(uvec));
            for (int r = 0; r <= span; r += STEP)  // padding is zero: its products are nothing
              if (content(g.x_first + i + r) && content(g.y_first + k + r))
                add_row<STEP, false>(a, a, g, cols, x + (i + r) * g.x_row, g.y + (k + r) * g.y_row, nullptr, nullptr);
          }
          ivec guess = {};
          for (int j = 0; j < cols; j++)
            finish(state + j * length + GROUP - 1, size, g, g.u + i * g.row_stride + (j0 + j) * g.col_stride, out, guess);
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

// Fixed-point |y_v|^2 at all positions, from one box filter over rows and one over columns.
template <class S>
void energies(const typename S::vec *y, const Problem &p, typename S::R scale, typename S::uvec *squares, typename S::uvec *sums, typename S::uvec *y2) {
  using vec = typename S::vec;
  using uvec = typename S::uvec;
  const long H = p.height, W = p.width, step = p.step, span = (p.taps - 1) * step, positions = W - span;
  for (long i = 0; i < H * W; i++) {
    vec v = {};
    for (int ch = 0; ch < p.chan; ch++) v += y[ch * H * W + i] * y[ch * H * W + i];
    squares[i] = nearest(v * scale);
  }
  auto box = [&](uvec *to, const uvec *from, long i, long stride, long to_stride) {  // the i-th sum along one axis
    if (i >= step) return to[-step * to_stride] + from[span * stride] - from[-step * stride];
    uvec v = {};
    for (long r = 0; r <= span; r += step) v += from[r * stride];
    return v;
  };
  for (long r = 0; r < H; r++)
    for (long j = 0; j < positions; j++) sums[r * positions + j] = box(sums + r * positions + j, squares + r * W + j, j, 1, 1);
  for (long i = 0; i < H - span; i++)
    for (long j = 0; j < positions; j++) y2[i * positions + j] = box(y2 + i * positions + j, sums + i * positions + j, i, positions, positions);
}

// x [chan, height, width], scaled by -2 * scale; y [block, chan, height, width, lane]; rows [n_rows, 4], cols [n_cols, 2]: ranges of positions
// that meet, of the train image and then of the query. The outputs are those of `Output`.
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
      int K = rows[4 * a + 1] - rows[4 * a], M = cols[2 * b + 1] - cols[2 * b];
      if (M == 1) std::swap(K, M);
      state = std::max(state, (long)S::columns(K, M, M) * K * S::row_length(M));
    }
  const long turned = p.chan * (span + 1l) * longest + 2 * S::GROUP, positions = height * width;
  const long vectors = state + longest * S::GROUP + 3 * positions + plane + p.height * width + turned;
  uvec *memory = (uvec *)scratch(vectors * sizeof(uvec) + turned * sizeof(R)), *free_part = memory;
  if (!memory) return 1;
  auto take = [&](long n) { return (free_part += n) - n; };
  S s{p, polynomial, cut, take(state), take(longest * S::GROUP), (typename S::ivec *)take(positions), (typename S::ivec *)take(positions)};
  uvec *squares = take(plane), *sums = take(p.height * width), *y2 = take(positions);
  vec *y_turned = (vec *)take(turned) + S::GROUP;
  R *x_turned = (R *)free_part;
  for (int block = 0; block < blocks; block++) {
    const vec *images = (const vec *)y + block * p.chan * plane;
    energies<S>(images, p, (R)scale, squares, sums, y2);
    const typename S::Output out{best, total, top, reference, blocks, block, std::min(L, p.images - block * L)};
    for (int a = 0; a < n_rows; a++)
      for (int b = 0; b < n_cols; b++) {
        const int *r = rows + 4 * a, c0 = cols[2 * b], c1 = cols[2 * b + 1], W = p.width;
        typename S::Region g{x + (long)r[2] * W + c0, images + (long)r[0] * W + c0, plane, W, plane, W, r[3] - r[2], r[1] - r[0], c1 - c0, c1 - c0,
                             r[2], r[0], p.row0, p.row1, y2 + r[0] * width + c0, width, 1, r[2] * width + c0};
        if (c1 - c0 == 1 && r[1] - r[0] > 1) {  // a column: turned into a row, since a row keeps all displacements busy
          const int h = span + 1, w = r[1] - r[0] + span;
          for (int ch = 0; ch < p.chan; ch++)
            for (int i = 0; i < h; i++)
              for (int j = 0; j < w; j++) {
                y_turned[(ch * h + i) * w + j] = images[ch * plane + (long)(r[0] + j) * W + c0 + i];
                x_turned[(ch * h + i) * w + j] = x[ch * plane + (long)(r[0] + j) * W + c0 + i];
              }
          g = {x_turned + r[2] - r[0], y_turned, (long)h * w, w, (long)h * w, w, 1, 1, r[3] - r[2], r[1] - r[0],
               c0, c0, p.col0, p.col1, g.y2, 1, width, g.u};
        }
        p.step == 1 ? s.template region<1>(g, out) : s.template region<2>(g, out);
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
