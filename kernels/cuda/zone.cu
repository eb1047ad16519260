// What the ladder decides between its readings: what clusters and rows weigh, and what reading them better could change.
//
// A unit is one query position and KV head; it has one strip for each segment, strips of a unit one behind the other. Clusters
// of strip t are numbered starts[t]..starts[t + 1]: this is their place in planes [place][group], and clusters[place] is where
// their records lie. Rows of opened clusters are numbered through, unit by unit: planes [row][group]. Weights are against the
// unit's `top`, the largest score that is known. An opened cluster is (place, first row, rows, strip).
//
// weigh_clusters  grid (units): weights of clusters by their centroids' scores; which means are read.
// rough_answer    grid (units * group), a thread for each element: the answer where clusters stand on their means.
// probe_gains     grid (units, blocks): what opening a cluster could change; which are opened.
// weigh_rows      a warp for each opened cluster: weights of rows by their sketches.
// row_gains       a warp for each opened cluster: squares of what reading a key or a value could change.
// weigh_keys      grid (units): weights of rows whose keys were read.
// take_rows       a thread for each entry: weights of listed rows.
// rest_on_mean    a warp for each opened cluster: its weight without the rows whose value was read in full.
// cluster_rises   a thread for each place: how far the weights of closed clusters lie above their centroids' scores.
// row_rises       a warp for each opened cluster: how far its rows score above its centroid.
// strip_rises     grid (strips): sums of both over strips.
#include "block.cuh"
#include "compat.cuh"

namespace {
using namespace cuk;
constexpr int kWarps = kThreads / 32;

// How much of a deviation above `score` a soft-cap leaves: the slope of the chord.
__device__ __forceinline__ float slope_of(float score, float deviation, float softcap) {
  if (deviation > 1.1920929e-7f * fabsf(score)) return (capped(score + deviation, softcap) - capped(score, softcap)) / deviation;
  const float level = capped(score, softcap) / softcap;
  return 1.f - level * level;
}

// Squared distance of a mean to the answer.
__device__ __forceinline__ float distance2(float mean_norm2, float product, float norm) {
  return fmaxf(mean_norm2 - 2.f * product + norm * norm, 0.f);
}

__device__ __forceinline__ unsigned warp_of_grid() { return blockIdx.x * kWarps + threadIdx.x / 32; }
}  // namespace

// summaries[cluster]: rows, key spread, value spread, squared error of the mean. middle and variance are [strip][group]: what
// is added to scores, and the variance of scores inside a cluster of key spread 1; withins has that of each cluster. means[place] is the cluster's record where
// its mean is read, and kEmpty elsewhere.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) weigh_clusters(
    const float* coded, const unsigned* clusters, const unsigned* starts, int strips, const float4* summaries,
    const float* middle, const float* variance, const float* steady_lse, int group, float softcap, float deviations,
    float deviations_least, float deviations_most, float far_deviations, float far_less, float rise, float least, float* scores, float* above, float* mass, float* estimate, float* withins, float* shares,
    unsigned* means, float* tops, float* steady) {
  __shared__ float shared[kWarps];
  const unsigned unit = blockIdx.x, first = starts[unit * strips], last = starts[(unit + 1) * strips];
  for (int g = 0; g < group; ++g) {
    const unsigned head = unit * group + g;
    float top = steady_lse[head];
    for (int s = 0; s < strips; ++s) {
      const unsigned strip = unit * strips + s;
      const float add = middle[strip * group + g], unit_variance = variance[strip * group + g];
      for (unsigned c = starts[strip] + threadIdx.x; c < starts[strip + 1]; c += kThreads) {
        const size_t at = (size_t)c * group + g;
        const float score = coded[at] + add;
        float within = unit_variance * summaries[clusters[c]].y;
        if (softcap > 0.f) {
          const float slope = slope_of(score, deviations * sqrtf(within), softcap);
          within *= slope * slope;
        }
        const float centre = capped(score, softcap);
        scores[at] = score;
        mass[at] = centre;
        withins[at] = within;
        top = fmaxf(top, centre);
      }
    }
    top = over_block<true>(top, shared);
    float sum = 0.f;
    for (unsigned c = first + threadIdx.x; c < last; c += kThreads) {
      const size_t at = (size_t)c * group + g;
      const float over = mass[at] - top, within = withins[at], count = summaries[clusters[c]].x;
      const float deviation = sqrtf(within);
      const float near = fmaxf(deviations_least * deviation, fminf(within, deviations_most * deviation));
      const float up = fmaxf(near, far_deviations * deviation - far_less);
      above[at] = expf(fminf(up, rise)) - 1.f;
      mass[at] = count * expf(over);
      estimate[at] = count * expf(over + fminf(within * 0.25f, 1.f));
      sum += mass[at];
    }
    const float exact = top == -CUK_INF ? 0.f : expf(steady_lse[head] - top);
    const float total = over_block<false>(sum, shared) + exact;
    for (unsigned c = first + threadIdx.x; c < last; c += kThreads) {
      const size_t at = (size_t)c * group + g;
      const float share = mass[at] / total * (1.f + above[at]);
      shares[c] = g == 0 ? share : fmaxf(shares[c], share);
    }
    if (threadIdx.x == 0) {
      tops[head] = top;
      steady[head] = exact;
    }
  }
  for (unsigned c = first + threadIdx.x; c < last; c += kThreads) means[c] = shares[c] > least ? clusters[c] : kEmpty;
}
CUK_REGISTER(weigh_clusters)

// sums[strip][group][dim] of means, and with `has_rows` coded[strip][group][dim] of values, in units of the scales sigma and
// value_sigma; these and global, the mean of all values, are [strips][kv_heads][dim]. steady_out is the output of the rows
// that are read anyway, whose weight is steady. on_mean is the part of weights that rests on means. Also what distances to
// means need: the answer in units of sigma, its product with global, and its norm.
CUK_KERNEL void __launch_bounds__(256) rough_answer(
    const float* sums, const float* sigma, const float* global, const float* coded, const float* value_sigma, int has_rows,
    const float* weights, const float* on_mean, const unsigned* starts, int strips, int kv_heads, int group,
    const float* steady, const float* steady_out, float* output, float* norms, float* totals, float* scaled,
    float* to_global) {
  __shared__ float shared[8];
  const unsigned unit = blockIdx.x / group, g = blockIdx.x % group, dim = blockDim.x, d = threadIdx.x;
  float out = 0.f, total = 0.f;
  for (int s = 0; s < strips; ++s) {
    const unsigned strip = unit * strips + s, row = s * kv_heads + unit % kv_heads;
    const size_t at = ((size_t)strip * group + g) * dim + d;
    float weight = 0.f, mean = 0.f;
    for (unsigned c = starts[strip] + d; c < starts[strip + 1]; c += dim) {
      weight += weights[(size_t)c * group + g];
      mean += on_mean[(size_t)c * group + g];
    }
    total += over_block<false>(weight, shared);
    mean = over_block<false>(mean, shared);
    out = fmaf(sums[at], sigma[row * dim + d], out);
    if (has_rows) out = fmaf(coded[at], value_sigma[row * dim + d], out);
    out = fmaf(mean, global[row * dim + d], out);
  }
  const float exact = steady[blockIdx.x];
  total += exact;
  out = fmaf(exact, steady_out[(size_t)blockIdx.x * dim + d], out) / total;
  output[(size_t)blockIdx.x * dim + d] = out;
  const float norm = fmaxf(sqrtf(over_block<false>(out * out, shared)), 1.17549435e-38f);
  if (d == 0) {
    norms[blockIdx.x] = norm;
    totals[blockIdx.x] = total;
  }
  for (int s = 0; s < strips; ++s) {
    const unsigned strip = unit * strips + s, row = s * kv_heads + unit % kv_heads;
    scaled[((size_t)strip * group + g) * dim + d] = out * sigma[row * dim + d];
    const float product = over_block<false>(out * global[row * dim + d], shared);
    if (d == 0) to_global[strip * group + g] = product;
  }
}
CUK_REGISTER(rough_answer)

// products[place][group]: of the answer, in units of the means' scales, with the means that are read.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) probe_gains(
    const unsigned* means, const unsigned* starts, int strips, const float4* summaries, const float* mean_norms2,
    const float* mass, const float* above, const float* products, const float* to_global, const float* norms,
    const float* totals, int group, float least, float* gains, unsigned* opened) {
  const unsigned unit = blockIdx.x;
  for (int s = 0; s < strips; ++s) {
    const unsigned strip = unit * strips + s;
    for (unsigned c = starts[strip] + blockIdx.y * kThreads + threadIdx.x; c < starts[strip + 1]; c += gridDim.y * kThreads) {
      const unsigned cluster = means[c];
      float gain = 0.f;
      if (cluster != kEmpty) {
        const float4 summary = summaries[cluster];
        const float inside = summary.z + summary.x * summary.w;
        for (int g = 0; g < group; ++g) {
          const size_t at = (size_t)c * group + g;
          const float norm = norms[unit * group + g];
          const float off = distance2(mean_norms2[cluster], products[at] + to_global[strip * group + g], norm);
          const float row = mass[at] / (totals[unit * group + g] * norm) / summary.x * above[at];
          gain += row * row * (off + inside);
        }
        gain = sqrtf(gain);
      }
      gains[c] = gain;
      opened[c] = gain > least ? cluster : kEmpty;
    }
  }
}
CUK_REGISTER(probe_gains)

// scores holds the sketches' scores and then these with the centroid's on top. noise[strip][group] is the deviation of a score
// whose row has factor 1. cluster_weights of opened clusters become the sums of their rows' weights.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) weigh_rows(
    const uint4* opened, unsigned count, const float* factors, const float* centres, const float* noise, const float* tops,
    int strips, int group, float softcap, float reach, float most, float* scores, float* weights, float* deviations,
    float* cluster_weights) {
  const unsigned number = warp_of_grid(), lane = threadIdx.x % 32;
  if (number >= count) return;
  const uint4 mine = opened[number];
  for (int g = 0; g < group; ++g) {
    const float centre = centres[(size_t)mine.x * group + g], top = tops[mine.w / strips * group + g];
    const float per_factor = noise[mine.w * group + g];
    float sum = 0.f;
    for (unsigned r = lane; r < mine.z; r += 32) {
      const size_t at = (size_t)(mine.y + r) * group + g;
      const float uncapped = scores[at] + centre;
      float deviation = per_factor * factors[mine.y + r];
      if (softcap > 0.f) deviation *= slope_of(uncapped, reach * deviation, softcap);
      const float allowed = capped(uncapped, softcap) + fminf(deviation * deviation * 0.5f, 1.f);
      const float weight = expf(fminf(allowed - top, most));
      scores[at] = uncapped;
      weights[at] = weight;
      deviations[at] = deviation;
      sum += weight;
    }
    sum = sum_lanes<32>(sum);
    if (lane == 0) cluster_weights[(size_t)mine.x * group + g] = sum;
  }
}
CUK_REGISTER(weigh_rows)

// gains[row]: with is_value of reading the value, else the key.
CUK_KERNEL void __launch_bounds__(cuk::kThreads, 8) row_gains(
    const uint4* opened, unsigned count, const unsigned* clusters, const float4* summaries, const float* mean_norms2,
    const float* products, const float* to_global, const float* norms, const float* totals, const float* weights,
    const float* deviations, int strips, int group, int is_value, float reach, float rise, float* gains) {
  const unsigned number = warp_of_grid(), lane = threadIdx.x % 32;
  if (number >= count) return;
  const uint4 mine = opened[number];
  const unsigned cluster = clusters[mine.x], unit = mine.w / strips;
  const float spread = summaries[cluster].z;
  float error[8];
CUK_UNROLL
  for (int g = 0; g < 8; ++g) {
    error[g] = 0.f;
    if (g < group) {
      const float norm = norms[unit * group + g];
      float off = 0.f;
      if (!is_value)
        off = distance2(mean_norms2[cluster], products[(size_t)mine.x * group + g] + to_global[mine.w * group + g], norm);
      error[g] = sqrtf(off + spread) / (norm * totals[unit * group + g]);
    }
  }
  for (unsigned r = lane; r < mine.z; r += 32) {
    float gain = 0.f;
CUK_UNROLL
    for (int g = 0; g < 8; ++g)
      if (g < group) {
        const size_t at = (size_t)(mine.y + r) * group + g;
        const float deviation = deviations[at], up = fminf(deviation * reach, rise);
        const float factor = is_value ? expf(fminf(deviation * deviation, up)) : expf(up) - 1.f;
        const float change = weights[at] * error[g] * factor;
        gain = fmaf(change, change, gain);
      }
    gains[mine.y + r] = gain;
  }
}
CUK_REGISTER(row_gains)

// reads[i]: (row, how finely its key was read, number of its score, 0); 0 is half a code, 1 a whole one, 2 the key in full.
// read[score][group] holds the scores of those in full, and of the others what their codes add to the sketch's, which is in sketched.
// left_half and left_whole: the part of a deviation that codes leave of what there was, which is the sketch's or, of keys that are read
// once more, their code's; what is left raises the score by half its square, at most by `most_raised`.
// A score so far above the top that its exponential could overflow a sum becomes the top. Sums of clusters are taken again. scores
// of rows become what the key came to, before the soft-cap.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) weigh_keys(
    const uint4* reads, const unsigned* read_starts, const uint4* opened, const unsigned* opened_starts,
    const unsigned* row_starts, const unsigned* starts, int strips, int group, float softcap, float over, float left_half,
    float left_whole, float most_raised, const float* sketched, float* scores, float* read, float* weights, float* deviations,
    float* cluster_weights, float* tops, float* steady) {
  __shared__ float shared[kWarps];
  const unsigned unit = blockIdx.x, first = read_starts[unit], last = read_starts[unit + 1];
  for (int g = 0; g < group; ++g) {
    const unsigned head = unit * group + g;
    float top = tops[head], most = -CUK_INF;
    for (unsigned i = first + threadIdx.x; i < last; i += kThreads) {
      const uint4 mine = reads[i];
      const size_t at = (size_t)mine.z * group + g, row = (size_t)mine.x * group + g;
      const float left = mine.y == 2 ? 0.f : mine.y == 1 ? left_whole : left_half;
      const float deviation = deviations[row] * left;
      const float uncapped = read[at] + (mine.y == 2 ? 0.f : sketched[row]), known = capped(uncapped, softcap);
      const float score = known + fminf(deviation * deviation * 0.5f, most_raised);
      scores[row] = uncapped;
      deviations[row] = deviation;
      read[at] = score;
      most = fmaxf(most, score);
    }
    most = over_block<true>(most, shared);
    if (most - top > over) {
      const float factor = expf(top - most);
      for (unsigned r = row_starts[unit] + threadIdx.x; r < row_starts[unit + 1]; r += kThreads)
        weights[(size_t)r * group + g] *= factor;
      for (unsigned c = starts[unit * strips] + threadIdx.x; c < starts[(unit + 1) * strips]; c += kThreads)
        cluster_weights[(size_t)c * group + g] *= factor;
      if (threadIdx.x == 0) {
        tops[head] = most;
        steady[head] *= factor;
      }
      top = most;
      __syncthreads();
    }
    for (unsigned i = first + threadIdx.x; i < last; i += kThreads)
      weights[(size_t)reads[i].x * group + g] = expf(read[(size_t)reads[i].z * group + g] - top);
  }
  __syncthreads();
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (unsigned o = opened_starts[unit] + warp; o < opened_starts[unit + 1]; o += kWarps)
    for (int g = 0; g < group; ++g) {
      float sum = 0.f;
      for (unsigned r = lane; r < opened[o].z; r += 32) sum += weights[(size_t)(opened[o].y + r) * group + g];
      sum = sum_lanes<32>(sum);
      if (lane == 0) cluster_weights[(size_t)opened[o].x * group + g] = sum;
    }
}
CUK_REGISTER(weigh_keys)

// Rows are marked, 1 where the value is read as a code, 2 where in full: the entries from first_full on.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) take_rows(const unsigned* rows, unsigned count, unsigned first_full,
                                                           const float* weights, int group, float* taken, unsigned* marks) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  for (int g = 0; g < group; ++g) taken[(size_t)i * group + g] = weights[(size_t)rows[i] * group + g];
  marks[rows[i]] = i >= first_full ? 2 : 1;
}
CUK_REGISTER(take_rows)

// on_mean holds the clusters' weights.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) rest_on_mean(const uint4* opened, unsigned count, const float* weights,
                                                              const unsigned* marks, int group, float* on_mean) {
  const unsigned number = warp_of_grid(), lane = threadIdx.x % 32;
  if (number >= count) return;
  const uint4 mine = opened[number];
  for (int g = 0; g < group; ++g) {
    float sum = 0.f;
    for (unsigned r = lane; r < mine.z; r += 32)
      if (marks[mine.y + r] == 2) sum += weights[(size_t)(mine.y + r) * group + g];
    sum = sum_lanes<32>(sum);
    if (lane == 0) on_mean[(size_t)mine.x * group + g] -= sum;
  }
}
CUK_REGISTER(rest_on_mean)

// rises[place][group]: weight times rise, and the square of rises over rows that were scanned, all times the cluster's steepness, by
// record. Of closed clusters that stand on a mean that was read; of the others it is 0. most_raised is what weights are raised by at
// most for what scores leave open. Twice that is by how much weights lie above a score: they grow with the square of the scale of
// scores.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) cluster_rises(const unsigned* means, unsigned count, const float* steepness,
                                                               const float* weights, const float* withins, int group,
                                                               float most_raised, float2* rises) {
  const unsigned c = blockIdx.x * kThreads + threadIdx.x;
  if (c >= count) return;
  const unsigned mean = means[c];
  const float steep = mean == kEmpty ? 0.f : steepness[mean];
  for (int g = 0; g < group; ++g) {
    const size_t at = (size_t)c * group + g;
    const float rise = mean == kEmpty ? 0.f : weights[at] * fminf(withins[at] * 0.5f, 2.f * most_raised);
    rises[at] = make_float2(rise * steep, 0.f);
  }
}
CUK_REGISTER(cluster_rises)

// The same of opened clusters: weights times rises over the rows whose value was not read, and squares over all. A rise is believed
// up to so many deviations of the scores inside the cluster, either way; its square is of the score alone, with its variance.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) row_rises(
    const uint4* opened, unsigned count, const unsigned* clusters, const float* steepness, const float* centres,
    const float* withins, const float* scores, const float* weights, const float* row_deviations, const unsigned* marks,
    int group, float deviations, float most_raised, float2* rises) {
  const unsigned number = warp_of_grid(), lane = threadIdx.x % 32;
  if (number >= count) return;
  const uint4 mine = opened[number];
  const float steep = steepness[clusters[mine.x]];
  for (int g = 0; g < group; ++g) {
    const size_t place = (size_t)mine.x * group + g;
    const float centre = centres[place], most = deviations * sqrtf(withins[place]);
    float sum = 0.f, squares = 0.f;
    for (unsigned r = lane; r < mine.z; r += 32) {
      const size_t at = (size_t)(mine.y + r) * group + g;
      const float above = scores[at] - centre, variance = row_deviations[at] * row_deviations[at];
      squares += fmaf(above, above, variance);
      if (marks[mine.y + r]) continue;
      const float rise = above + fminf(variance, 2.f * most_raised);
      sum = fmaf(weights[at], fmaxf(fminf(rise, most), -most), sum);
    }
    sum = sum_lanes<32>(sum);
    squares = sum_lanes<32>(squares);
    if (lane == 0) rises[place] = make_float2(sum * steep, squares * steep * steep);
  }
}
CUK_REGISTER(row_rises)

// sums[strip][group] of rises over the places of each strip.
CUK_KERNEL void __launch_bounds__(cuk::kThreads) strip_rises(const float2* rises, const unsigned* starts, int group,
                                                             float2* sums) {
  __shared__ float shared[kWarps];
  const unsigned strip = blockIdx.x;
  for (int g = 0; g < group; ++g) {
    float weighted = 0.f, squares = 0.f;
    for (unsigned c = starts[strip] + threadIdx.x; c < starts[strip + 1]; c += kThreads) {
      const float2 rise = rises[(size_t)c * group + g];
      weighted += rise.x;
      squares += rise.y;
    }
    weighted = over_block<false>(weighted, shared);
    squares = over_block<false>(squares, shared);
    if (threadIdx.x == 0) sums[(size_t)strip * group + g] = make_float2(weighted, squares);
  }
}
CUK_REGISTER(strip_rises)
