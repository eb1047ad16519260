#!/usr/bin/env bash
# Breaks the kernels, one fault at a time; the tests must notice each. Takes about twenty minutes on a busy machine.
#   gpu/emulation/mutate.sh [WORD]    only faults whose name has WORD
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
only="${1:-}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r kernels/cuda gpu/emulation/device "$work"
kernels="$work/cuda"
caught=0 survived=0

# The tests are built once; they load the library that is made here, as build.rs makes it.
binary=$(cargo test --workspace --test device --no-run 2>&1 | sed -nE 's/.*\((.*device-[0-9a-f]+)\).*/\1/p')
[[ -x $binary ]] || { echo "the tests do not build: cargo test -p longwave-gpu --test device"; exit 1; }
# A copy: a build that runs beside this would replace the tests, and tests that are not there would look like tests that fail.
cp "$binary" "$work/tests" && binary="$work/tests"
flags=(-std=c++17 -O2 -fPIC -w -DCUEMU -I"$work/device" -I"$kernels")
[[ $(uname -m) == x86_64 ]] && flags+=(-march=x86-64-v3)
compile() { for source in "$@"; do c++ "${flags[@]}" -x c++ -c "$source" -o "$work/$(basename "$source").o" || return 1; done; }
link() { c++ -shared -Wl,-soname,libcuda.so -Wl,-z,defs -o "$work/libcuda.so" "$work"/*.o -lpthread; }
run_test() { LONGWAVE_EMULATED_LIBCUDA="$work/libcuda.so" timeout 300 "$binary" --exact "$1" >"$work/log" 2>&1; }
# Runs every test that looks at kernels, and notes how long it takes.
run_whole() {
  local name
  for name in $("$binary" --list attend:: probe:: ladder:: zone:: | sed -n 's/: test$//p'); do
    local from=${EPOCHREALTIME/./}
    run_test "$name" || return 1
    echo "$((${EPOCHREALTIME/./} - from)) $name"
  done | sort -n >"$work/tests_by_time"
  return "${PIPESTATUS[0]}"
}
# The tests that look at the kernels of a source; of a header, those of all. The quickest first: most faults are noticed by any.
run_tests() { # source
  local name
  while read -r _ name; do
    [[ $1 == *.cuh || $name == "${1%.cu}"::* ]] || continue
    run_test "$name" || return 1
  done <"$work/tests_by_time"
}

fault() { # name, file, sed expression
  [[ $1 == *"$only"* ]] || return 0
  local file="$kernels/$2"
  cp "$file" "$work/whole"
  rm -rf "$work/objects" && mkdir "$work/objects" && cp "$work"/*.o "$work/objects"
  sed -i -E "$3" "$file"
  local changed=("$file")
  [[ $2 == *.cuh ]] && changed=("$kernels"/*.cu)
  if cmp -s "$file" "$work/whole"; then
    echo "NO CHANGE  $1"
    survived=$((survived + 1))
  elif ! compile "${changed[@]}" >"$work/log" 2>&1; then
    echo "NO KERNEL  $1: $(grep -m1 error "$work/log")"
    survived=$((survived + 1))
  elif link && run_tests "$2"; then
    echo "SURVIVED   $1"
    survived=$((survived + 1))
  else
    caught=$((caught + 1))
    echo "caught     $1: $(grep -hE 'emulated device\]|race|off by|not a number|left:|factors| for [-0-9]' "$work/log" | head -1 | cut -c1-110)"
  fi
  cp "$work/whole" "$file"
  cp "$work"/objects/*.o "$work"
}

compile "$kernels"/*.cu "$work"/device/*.cpp && link && run_whole || { tail -40 "$work/log"; echo "the tests fail before anything is broken"; exit 1; }

A=attend.cu P=probe.cu L=ladder.cu Z=zone.cu H=compat.cuh B=block.cuh C=codes.cuh
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
fault "probe: entries counted from the beginning of all lists" $P 's/at < last \? list\[at\]/at < last ? list[at - begin]/'
fault "probe: entries of no row are scored" $P 's/= taken \? capped\(dot, softcap\) : -CUK_INF/= capped(dot, softcap)/'
fault "probe: queries of the first unit for all" $P 's/queries\[\(\(size_t\)unit \* group \+ g\)/queries[((size_t)0 * group + g)/'
fault "softmax: no barrier after a block's maxima are read" $B '/^__device__ __forceinline__ float over_block/,/^}/ s/^  __syncthreads\(\);\n  return x;//; /^__device__ __forceinline__ float over_block/,/^}/ { /shared\[w\]\) : x \+ shared\[w\];/{n; s/__syncthreads\(\);//} }'
fault "softmax: no barrier before shares" $P '/^CUK_KERNEL.*softmax_shares/,/^}/ s/^  __syncthreads\(\);$//'
fault "softmax: shares are not divided by the sum" $P 's/sum > 0\.f \? 1\.f \/ sum : 0\.f;/1.f;/'
fault "select: ties are taken from behind" $P 's/ties_top \&\& over_top \+ top_rank < top/ties_top/'
fault "select: ranks forget the warps before" $B 's/if \(w < \(int\)warp\) before \+= shared\[w\];//'
fault "select: no barrier before ranks are read" $B '/^__device__ __forceinline__ unsigned rank_in_block/,/^}/ { /if \(lane == 0\) shared\[warp\]/{n; s/__syncthreads\(\);//} }'
fault "select: no barrier after ranks are read" $B '/^__device__ __forceinline__ unsigned rank_in_block/,/^}/ { /^  __syncthreads\(\);$/{N; s/__syncthreads\(\);\n  return before;/return before;/} }'
fault "select: at least instead of above" $P 's/c < count \&\& gain > first;/c < count \&\& gain >= first;/'
fault "select: levels by the second threshold alone" $P 's/\(gain > second\) \+ \(gain > third\)/(gain > second)/'
fault "select: places counted from the beginning of their round" $P 's/level << 30 \| c;/level << 30 | threadIdx.x;/'
fault "scan: low and high halves swapped" $L 's/mine\[byte \& 15\] \+ mine\[16 \+ \(byte >> 4\)\]/mine[byte >> 4] + mine[16 + (byte \& 15)]/'
fault "scan: lanes without a row get results" $L 's/holds = lane < \(int\)block\.y;/holds = true;/'
fault "scan: columns of 32 rows always" $L 's/columns\[at \* block\.y \+ lane\]/columns[at * 32 + lane]/'
fault "scan: no barrier before tables are read" $L '/void scan_body/,/^}/ s/^  __syncthreads\(\);$//'
fault "tables: no barrier before least entries are summed" $L '/sketch_tables/,/^}/ s/^      __syncthreads\(\);$//'
fault "tables: one warp's widths" $L 's/for \(int w = 0; w < cuk::kThreads \/ 32; \+\+w\) widest/for (int w = 0; w < 1; ++w) widest/'
fault "codes: signs of levels turned" $C 's/return code \& 8 \? level : -level;/return code \& 8 ? -level : level;/'
fault "halves: signs of levels turned" $C 's/return upper >= 2 \? level : -level;/return upper >= 2 ? -level : level;/'
fault "halves: the levels of whole codes" $C 's/kWhole \? levels : levels \+ 16/kWhole ? levels : levels/'
fault "planes: lower bits in place of the upper ones" $C 's/upper = two_bytes\(record \+ 2 \+ lane \* 2\)/upper = two_bytes(record + 2 + dim \/ 4 + lane * 2)/'
fault "planes: the factor where that of a summary lies" $C 's/form == kPairs \? record \+ dim \/ 2 : record/record + dim \/ 2/'
fault "planes: whole records where they are cut off, of keys" $L 's/\(size_t\)\(taken \? row : 0\) \* stride/(size_t)(taken ? row : 0) * (dim \/ 2 + 2)/'
fault "planes: whole records where they are cut off, of values" $L 's/\(size_t\)row \* stride/(size_t)row * (dim \/ 2 + 2)/'
fault "codes: factor of a key left out" $L 's/taken \? dot \* factor : -CUK_INF/taken ? dot : -CUK_INF/'
fault "codes: bytes swapped" $C 's/two_bytes\(record \+ lane \* 4\) \| two_bytes\(record \+ lane \* 4 \+ 2\) << 16/two_bytes(record + lane * 4 + 2) | two_bytes(record + lane * 4) << 16/'
fault "codes: no barrier before teams' sums are read" $L '/void sum_body/,/^}/ s/^  __syncthreads\(\);$//'
fault "codes: a team skips its second row" $L 's/for \(unsigned at = first \+ team; at < last; at \+= kTeams\)/for (unsigned at = first + team; at < last; at += 2 * kTeams)/'
fault "codes: no barrier before levels are read" $C '/void fill_levels/,/^}/ s/^  __syncthreads\(\);$//'
fault "full rows: every lane reads the first elements" $L 's/ldg_stream16\(row \+ lane \* 16\)/ldg_stream16(row)/'
fault "scan: the layout of the first unit for all" $L 's/bytes = layouts\[unit\]\.w/bytes = layouts[0].w/'
fault "tables: the layout of the first unit for all" $L 's/fours = layouts\[unit\]\.x/fours = layouts[0].x/'
fault "zone: the middle of centroids is left out" $Z 's/coded\[at\] \+ add/coded[at]/'
fault "zone: all means are read" $Z 's/shares\[c\] > least \? clusters\[c\] : kEmpty/clusters[c]/'
fault "zone: shares of the last head alone" $Z 's/g == 0 \? share : fmaxf\(shares\[c\], share\)/share/'
fault "zone: steady rows are no part of the mass" $Z 's/over_block<false>\(sum, shared\) \+ exact/over_block<false>(sum, shared)/'
fault "zone: estimates without an allowance" $Z 's/ \+ fminf\(within \* 0\.25f, 1\.f\)//'
fault "zone: a soft-cap leaves deviations as they are" $Z 's/within \*= slope \* slope;//'
fault "rough: scales of the first head for all" $Z 's/s \* kv_heads \+ unit % kv_heads/s * kv_heads/'
fault "rough: coded values are left out" $Z 's/if \(has_rows\) out = /if (!has_rows) out = /'
fault "rough: not divided by the total" $Z 's/(steady_out\[\(size_t\)blockIdx\.x \* dim \+ d\], out\)) \/ total/\1/'
fault "rough: weights in place of those on means" $Z 's/mean \+= on_mean\[/mean += weights[/'
fault "rough: products of the first strip for all" $Z 's/to_global\[strip \* group \+ g\] = product/to_global[unit * strips * group + g] = product/'
fault "gains: distance to the other side" $Z 's/mean_norm2 - 2\.f \* product/mean_norm2 + 2.f * product/'
fault "gains: opened whatever the gain" $Z 's/gain > least \? cluster/gain >= 0.f ? cluster/'
fault "gains: the error of a mean is left out" $Z 's/summary\.z \+ summary\.x \* summary\.w/summary.z/'
fault "rows: half of the lanes are summed" $Z 's/sum = sum_lanes<32>\(sum\);/sum = sum_lanes<16>(sum);/'
fault "rows: deviations of the first strip for all" $Z 's/noise\[mine\.w \* group \+ g\]/noise[g]/'
fault "rows: the top of the first unit for all" $Z 's/tops\[mine\.w \/ strips \* group \+ g\]/tops[g]/'
fault "rows: scores without their centroid are kept" $Z 's/^      scores\[at\] = uncapped;$//'
fault "row gains: values without their deviation" $Z 's/is_value \? expf\(fminf\(deviation \* deviation, up\)\)/is_value ? 1.f/'
fault "row gains: keys as values" $Z 's/ : expf\(up\) - 1\.f;/ : expf(fminf(deviation * deviation, up));/'
fault "keys: scores in the order of reads" $Z 's/at = \(size_t\)mine\.z \* group/at = (size_t)i * group/'
fault "keys: codes without their sketch" $Z 's/\(mine\.y == 2 \? 0\.f : scores\[row\]\)/0.f/'
fault "keys: full rows added to their sketch" $Z 's/\(mine\.y == 2 \? 0\.f : scores\[row\]\)/scores[row]/'
fault "keys: halves leave no more than whole codes" $Z 's/mine\.y == 1 \? left_whole : left_half/left_whole/'
fault "keys: nothing added for what codes leave" $Z 's/known \+ fminf\(deviation \* deviation \* 0\.5f, most_raised\)/known/'
fault "keys: raised without a limit" $Z 's/known \+ fminf\(deviation \* deviation \* 0\.5f, most_raised\)/known + deviation * deviation * 0.5f/'
fault "keys: weights stay against the old top" $Z 's/weights\[\(size_t\)r \* group \+ g\] \*= factor;/;/'
fault "keys: no barrier behind a new top" $Z '/weigh_keys\(/,/^}/ s/^      __syncthreads\(\);$//'
fault "keys: no barrier before sums are taken again" $Z '/weigh_keys\(/,/^}/ s/^  __syncthreads\(\);$//'
fault "keys: deviations stay" $Z 's/^      deviations\[row\] = deviation;$//'
fault "keys: scores of the sketches are kept" $Z 's/^      scores\[row\] = uncapped;$//'
fault "keys: capped scores are kept" $Z 's/scores\[row\] = uncapped/scores[row] = known/'
fault "values: what is coded leaves its mean, too" $Z 's/marks\[mine\.y \+ r\] == 2/marks[mine.y + r]/'
fault "values: one entry too many counts as full" $Z 's/i >= first_full \?/i + 1 >= first_full ?/'
fault "values: codes are not marked" $Z 's/i >= first_full \? 2 : 1/i >= first_full ? 2 : 0/'
fault "rises: clusters rise whose mean is not read" $Z 's/const float rise = mean == kEmpty \? 0\.f : weights/const float rise = weights/; s/mean == kEmpty \? 0\.f : steepness\[mean\]/steepness[mean == kEmpty ? 0 : mean]/'
fault "rises: closed clusters by all of their variance" $Z 's/withins\[at\] \* 0\.5f/withins[at]/'
fault "rises: closed clusters without a limit" $Z 's/fminf\(withins\[at\] \* 0\.5f, 2\.f \* most_raised\)/withins[at] * 0.5f/'
fault "rises: closed clusters as steep as each other" $Z 's/make_float2\(rise \* steep, 0\.f\)/make_float2(rise, 0.f)/'
fault "rises: the steepness of a place in place of its record's" $Z 's/steepness\[clusters\[mine\.x\]\]/steepness[mine.x % 50]/'
fault "rises: values that were read rise, too" $Z 's/^      if \(marks\[mine\.y \+ r\]\) continue;$//'
fault "rises: values that were read have no square" $Z '/row_rises\(/,/^}/ s/squares \+= fmaf/if (!marks[mine.y + r]) squares += fmaf/'
fault "rises: scores of rows without their centroid's" $Z 's/scores\[at\] - centre/scores[at]/'
fault "rises: nothing for what scores leave open" $Z 's/above \+ fminf\(variance, 2\.f \* most_raised\)/above/'
fault "rises: what scores leave open without a limit" $Z 's/fminf\(variance, 2\.f \* most_raised\)/variance/'
fault "rises: no limit below" $Z 's/fmaxf\(fminf\(rise, most\), -most\)/fminf(rise, most)/'
fault "rises: the limit of the first place for all" $Z 's/sqrtf\(withins\[place\]\)/sqrtf(withins[g])/'
fault "rises: squares without what scores leave open" $Z 's/fmaf\(above, above, variance\)/above * above/'
fault "rises: squares by the steepness alone" $Z 's/squares \* steep \* steep/squares * steep/'
fault "rises: strips without their last place" $Z '/strip_rises\(/,/^}/ s/c < starts\[strip \+ 1\]/c + 1 < starts[strip + 1]/'
fault "rises: a strip's sums in the place of another's" $Z 's/sums\[\(size_t\)strip \* group \+ g\]/sums[(size_t)strip \* group + (g ? g - 1 : group - 1)]/'

echo "$caught caught, $survived survived"
[[ $survived == 0 ]]
