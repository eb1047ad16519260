#!/usr/bin/env bash
# Breaks the kernels, one fault at a time, in a copy of the workspace; the tests must notice each. Takes a quarter of an hour on an idle machine.
#   gpu/emulation/mutate.sh [WORD]    only faults whose name has WORD
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export CARGO_TARGET_DIR="${MUTATE_TARGET_DIR:-$PWD/target/mutate}"
only="${1:-}"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$root"
cd "$root"
kernels=kernels/cuda
caught=0 survived=0

# Tests that look at kernels: those of the PTX, of opening and of whole calls are left out.
run_tests() { timeout 900 cargo test -q -p longwave-gpu --test device -- --skip ptx:: --skip split:: --skip opening:: >"$root/log" 2>&1; }

fault() { # name, file, sed expression
  [[ $1 == *"$only"* ]] || return 0
  local file="$kernels/$2"
  cp "$file" "$root/whole"
  sed -i -E "$3" "$file"
  if cmp -s "$file" "$root/whole"; then
    echo "NO CHANGE  $1"
    survived=$((survived + 1))
  elif run_tests; then
    echo "SURVIVED   $1"
    survived=$((survived + 1))
  else
    caught=$((caught + 1))
    echo "caught     $1: $(grep -hE 'emulated device\]|race|off by|not a number|left:|did not compile|for [-0-9]' "$root/log" | head -1 | cut -c1-110)"
  fi
  cp "$root/whole" "$file"
}

run_tests || { tail -40 "$root/log"; echo "the tests fail before anything is broken"; exit 1; }

A=attend.cu P=probe.cu L=ladder.cu H=compat.cuh
fault "attend: no barrier before teams merge" $A '/^__device__ __forceinline__ void finish/,/^}/ s/^  __syncthreads\(\);$//'
fault "attend: weights gathered are not lowered" $A 's/state\.sum\[g\] \*= fall;//'
fault "attend: outputs gathered are not lowered" $A 's/state\.out\[g\]\[i\] \*= fall;//'
fault "attend: an entry of no row is read" $A 's/taken\[u\] = row != kEmpty;/taken[u] = at < last;/; s/const size_t slot = row >> slot_shift/const size_t slot = (row == kEmpty ? 0 : row) >> slot_shift/'
fault "attend: a missing row weighs as a score of 0" $A 's/taken\[u\] \? capped\(dot, softcap\) \* kLog2e : kNone/capped(dot, softcap) * kLog2e/'
fault "attend: keys taken for values" $A 's/from \+ \(\(size_t\)dim << slot_shift\)/from/'
fault "attend: place within the slot is left out" $A 's/\(slot << \(slot_shift \+ 1\)\) \+ in_slot/slot << (slot_shift + 1)/'
fault "attend: splits overlap" $A 's/last = begin \+ min\(count, \(blockIdx\.y \+ 1\) \* span\);/last = begin + min(count, (blockIdx.y + 1) * span + 1);/'
fault "attend: the last rows of a list are dropped" $A 's/const unsigned span = \(count \+ gridDim\.y - 1\) \/ gridDim\.y;/const unsigned span = count \/ gridDim.y;/'
fault "attend: lanes without elements load the next row" $A 's/const bool holds = lane \* 8 < dim;  .*$/const bool holds = true;/'
fault "attend: no soft cap" $A 's/capped\(dot, softcap\) \* kLog2e/dot * kLog2e/'
fault "attend: only the first team is merged" $A 's/t < kTeams; \+\+t\) \{/t < 1; ++t) {/'
fault "attend: heads and elements swapped on the way out" $A 's/const int g = e \/ dim, d = e % dim;/const int g = e % group, d = e \/ group;/; s/part_out\[\(first_head \+ g\) \* dim \+ d\]/part_out[first_head * dim + e]/'
fault "attend: log-sum-exp in base 2" $A 's/\(top \+ log2f\(sum\)\) \* kLn2/top + log2f(sum)/'
fault "estimate: counts are left out" $A 's/kLog2e, log2f\(rows_of\)\)/kLog2e, 0.f)/'
fault "estimate: scores by cluster instead of by entry" $A 's/scores\[\(size_t\)at \* group \+ g\]/scores[(size_t)(row % 32) * group + g]/'
fault "merge: every part weighs the same" $A 's/const float weight = exp2f\(\(part_lse\[at\] - top\) \* cuk::kLog2e\);/const float weight = 1.f;/'
fault "merge: the first part is forgotten" $A 's/for \(int p = 0; p < parts; \+\+p\) \{/for (int p = 1; p < parts; ++p) {/'
fault "merge: log-sum-exp without its top" $A 's/top \+ logf\(sum\) : -CUK_INF;/logf(sum) : -CUK_INF;/'
fault "lanes: one step of the sum is missing" $H 's/for \(int step = L \/ 2; step > 0/for (int step = L \/ 4; step > 0/'
fault "lanes: half of the warp sums" $H 's/x \+= __shfl_xor_sync\(kAll, x, step\)/x += __shfl_xor_sync(0x0000ffffu, x, step)/'
fault "pairs: elements swapped" $H 's/f\[0\] = a\.x; f\[1\] = a\.y;/f[0] = a.y; f[1] = a.x;/'
fault "probe: first centroid of the unit is left out" $P 's/\(firsts\[unit\] \+ cluster\)/cluster/'
fault "probe: queries of the first unit for all" $P 's/queries\[\(\(size_t\)unit \* group \+ g\)/queries[((size_t)0 * group + g)/'
fault "softmax: no barrier after a block's maxima are read" $P '/^__device__ __forceinline__ float over_block/,/^}/ s/^  __syncthreads\(\);\n  return x;//; /^__device__ __forceinline__ float over_block/,/^}/ { /shared\[w\]\) : x \+ shared\[w\];/{n; s/__syncthreads\(\);//} }'
fault "softmax: no barrier before shares" $P '/^CUK_KERNEL.*softmax_shares/,/^}/ s/^  __syncthreads\(\);$//'
fault "softmax: shares are not divided by the sum" $P 's/sum > 0\.f \? 1\.f \/ sum : 0\.f;/1.f;/'
fault "select: ties are taken from behind" $P 's/ties_top \&\& over_top \+ top_rank < top/ties_top/'
fault "select: ranks forget the warps before" $P 's/if \(w < \(int\)warp\) before \+= shared\[w\];//'
fault "select: no barrier before ranks are read" $P '/^__device__ __forceinline__ unsigned rank_in_block/,/^}/ { /if \(lane == 0\) shared\[warp\]/{n; s/__syncthreads\(\);//} }'
fault "select: no barrier after ranks are read" $P '/^__device__ __forceinline__ unsigned rank_in_block/,/^}/ { /^  __syncthreads\(\);$/{N; s/__syncthreads\(\);\n  return before;/return before;/} }'
fault "select: at least instead of above" $P 's/c < count \&\& gain > most;/c < count \&\& gain >= most;/'
fault "scan: low and high halves swapped" $L 's/mine\[byte \& 15\] \+ mine\[16 \+ \(byte >> 4\)\]/mine[byte >> 4] + mine[16 + (byte \& 15)]/'
fault "scan: rows that fill a block get results" $L 's/counts = lane < \(int\)block\.z;/counts = lane < (int)block.y;/'
fault "scan: columns of 32 rows always" $L 's/columns\[at \* block\.y \+ lane\]/columns[at * 32 + lane]/'
fault "scan: no barrier before tables are read" $L '/void scan_body/,/^}/ s/^  __syncthreads\(\);$//'
fault "tables: no barrier before least entries are summed" $L '/sketch_tables/,/^}/ s/^      __syncthreads\(\);$//'
fault "tables: one warp's widths" $L 's/for \(int w = 0; w < cuk::kThreads \/ 32; \+\+w\) widest/for (int w = 0; w < 1; ++w) widest/'
fault "codes: signs of levels turned" $L 's/return code \& 8 \? level : -level;/return code \& 8 ? -level : level;/'
fault "codes: factor of a key left out" $L 's/taken \? dot \* factor : -CUK_INF/taken ? dot : -CUK_INF/'
fault "codes: bytes swapped" $L 's/two_bytes\(record \+ lane \* 4\) \| two_bytes\(record \+ lane \* 4 \+ 2\) << 16/two_bytes(record + lane * 4 + 2) | two_bytes(record + lane * 4) << 16/'
fault "codes: no barrier before teams' sums are read" $L '/void sum_codes_body/,/^}/ s/^  __syncthreads\(\);$//'
fault "codes: a team skips its second row" $L 's/for \(unsigned at = first \+ team; at < last; at \+= kTeams\)/for (unsigned at = first + team; at < last; at += 2 * kTeams)/'

echo "$caught caught, $survived survived"
[[ $survived == 0 ]]
