;; Blocks of GGML types as codes, scales and offsets of MatMulNBits, sixteen bytes at a time: what `unpackedFill` of
;; matmul-nbits.ts does, to the bit. `npm run assemble` makes fill-wasm.ts of it.
;;
;; Every function takes the first address of the blocks and the address after the last, and where codes, scales and offsets
;; go; it returns the largest size of an offset.

(module
  (memory (export "memory") 4)

  ;; Halves in the low sixteen bits of each lane, as floats: their bits in a float's places are 2^112 times too small.
  (func $floats (param $h v128) (result v128)
    (local $f v128)
    (local.set $f
      (f32x4.mul
        (i32x4.shl (v128.and (local.get $h) (v128.const i32x4 0x7fff 0x7fff 0x7fff 0x7fff)) (i32.const 13))
        (v128.const f32x4 0x1p112 0x1p112 0x1p112 0x1p112)))
    ;; An exponent of all ones is infinity's, or that of no number.
    (local.set $f
      (v128.or
        (local.get $f)
        (v128.and
          (i32x4.eq
            (v128.and (local.get $h) (v128.const i32x4 0x7c00 0x7c00 0x7c00 0x7c00))
            (v128.const i32x4 0x7c00 0x7c00 0x7c00 0x7c00))
          (v128.const i32x4 0x7f800000 0x7f800000 0x7f800000 0x7f800000))))
    (v128.or
      (local.get $f)
      (i32x4.shl (v128.and (local.get $h) (v128.const i32x4 0x8000 0x8000 0x8000 0x8000)) (i32.const 16))))

  ;; The first two halves at an address, in the first two lanes.
  (func $twoHalves (param $at i32) (result v128)
    (call $floats (i32x4.extend_low_i16x8_u (v128.load32_zero align=1 (local.get $at)))))

  (func $low (param $x v128) (result v128)
    (v128.and (local.get $x) (v128.const i8x16 15 15 15 15 15 15 15 15 15 15 15 15 15 15 15 15)))

  (func $high (param $x v128) (result v128) (i8x16.shr_u (local.get $x) (i32.const 4)))

  ;; Nibbles in bytes, of x and then of y, two and two in a byte.
  (func $packed (param $x v128) (param $y v128) (result v128)
    (i8x16.narrow_i16x8_u
      (v128.and
        (v128.or (local.get $x) (i16x8.shr_u (local.get $x) (i32.const 4)))
        (v128.const i16x8 255 255 255 255 255 255 255 255))
      (v128.and
        (v128.or (local.get $y) (i16x8.shr_u (local.get $y) (i32.const 4)))
        (v128.const i16x8 255 255 255 255 255 255 255 255))))

  ;; The four bytes of a word, as floats.
  (func $bytes (param $word i32) (result v128)
    (f32x4.convert_i32x4_s
      (i32x4.extend_low_i16x8_u (i16x8.extend_low_i8x16_u (i32x4.splat (local.get $word))))))

  (func $signedBytes (param $word i32) (result v128)
    (f32x4.convert_i32x4_s
      (i32x4.extend_low_i16x8_s (i16x8.extend_low_i8x16_s (i32x4.splat (local.get $word))))))

  (func $largestOf (param $x v128) (result f32)
    (f32.max
      (f32.max (f32x4.extract_lane 0 (local.get $x)) (f32x4.extract_lane 1 (local.get $x)))
      (f32.max (f32x4.extract_lane 2 (local.get $x)) (f32x4.extract_lane 3 (local.get $x)))))

  ;; d, then 32 nibbles, the first half of the elements in the low ones
  (func (export "Q4_0")
    (param $from i32) (param $end i32) (param $codes i32) (param $scales i32) (param $offsets i32) (result f32)
    (local $x v128)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (f32.store (local.get $scales) (f32x4.extract_lane 0 (call $twoHalves (local.get $from))))
        (local.set $x (v128.load offset=2 align=1 (local.get $from)))
        (v128.store (local.get $codes) (call $packed (call $low (local.get $x)) (call $high (local.get $x))))
        (local.set $from (i32.add (local.get $from) (i32.const 18)))
        (local.set $codes (i32.add (local.get $codes) (i32.const 16)))
        (local.set $scales (i32.add (local.get $scales) (i32.const 4)))
        (br $next)))
    (f32.const 0))

  ;; d, m, then the same
  (func (export "Q4_1")
    (param $from i32) (param $end i32) (param $codes i32) (param $scales i32) (param $offsets i32) (result f32)
    (local $x v128) (local $offset f32) (local $largest f32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (local.set $x (call $twoHalves (local.get $from)))
        (f32.store (local.get $scales) (f32x4.extract_lane 0 (local.get $x)))
        (local.set $offset
          (f32.add
            (f32x4.extract_lane 1 (local.get $x))
            (f32.mul (f32x4.extract_lane 0 (local.get $x)) (f32.const 8))))
        (f32.store (local.get $offsets) (local.get $offset))
        (local.set $largest (f32.max (local.get $largest) (f32.abs (local.get $offset))))
        (local.set $x (v128.load offset=4 align=1 (local.get $from)))
        (v128.store (local.get $codes) (call $packed (call $low (local.get $x)) (call $high (local.get $x))))
        (local.set $from (i32.add (local.get $from) (i32.const 20)))
        (local.set $codes (i32.add (local.get $codes) (i32.const 16)))
        (local.set $scales (i32.add (local.get $scales) (i32.const 4)))
        (local.set $offsets (i32.add (local.get $offsets) (i32.const 4)))
        (br $next)))
    (local.get $largest))

  ;; d, then 32 signed bytes; 128 more than each is its code
  (func (export "Q8_0")
    (param $from i32) (param $end i32) (param $codes i32) (param $scales i32) (param $offsets i32) (result f32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (f32.store (local.get $scales) (f32x4.extract_lane 0 (call $twoHalves (local.get $from))))
        (v128.store
          (local.get $codes)
          (v128.xor (v128.load offset=2 align=1 (local.get $from)) (i8x16.splat (i32.const 128))))
        (v128.store offset=16
          (local.get $codes)
          (v128.xor (v128.load offset=18 align=1 (local.get $from)) (i8x16.splat (i32.const 128))))
        (local.set $from (i32.add (local.get $from) (i32.const 34)))
        (local.set $codes (i32.add (local.get $codes) (i32.const 32)))
        (local.set $scales (i32.add (local.get $scales) (i32.const 4)))
        (br $next)))
    (f32.const 0))

  ;; Scales and offsets of four runs: d · s, and center · d · s − dmin · m. @returns the largest size of an offset, by lane
  (func $fourRuns
    (param $d v128) (param $dmin v128) (param $s i32) (param $m i32) (param $center f32)
    (param $scales i32) (param $offsets i32) (result v128)
    (local $x v128)
    (local.set $x (f32x4.mul (local.get $d) (call $bytes (local.get $s))))
    (v128.store (local.get $scales) (local.get $x))
    (local.set $x
      (f32x4.sub
        (f32x4.mul (local.get $x) (f32x4.splat (local.get $center)))
        (f32x4.mul (local.get $dmin) (call $bytes (local.get $m)))))
    (v128.store (local.get $offsets) (local.get $x))
    (f32x4.abs (local.get $x)))

  ;; Scales and offsets of eight runs, whose six bits each lie in twelve bytes after the two halves at an address.
  (func $eightRuns
    (param $at i32) (param $center f32) (param $scales i32) (param $offsets i32) (result v128)
    (local $halves v128) (local $d v128) (local $dmin v128) (local $s i32) (local $m i32) (local $both i32)
    (local.set $halves (call $twoHalves (local.get $at)))
    (local.set $d (f32x4.splat (f32x4.extract_lane 0 (local.get $halves))))
    (local.set $dmin (f32x4.splat (f32x4.extract_lane 1 (local.get $halves))))
    (local.set $s (i32.load offset=4 align=1 (local.get $at)))
    (local.set $m (i32.load offset=8 align=1 (local.get $at)))
    (local.set $both (i32.load offset=12 align=1 (local.get $at)))
    (f32x4.max
      (call $fourRuns
        (local.get $d) (local.get $dmin)
        (i32.and (local.get $s) (i32.const 0x3f3f3f3f))
        (i32.and (local.get $m) (i32.const 0x3f3f3f3f))
        (local.get $center) (local.get $scales) (local.get $offsets))
      (call $fourRuns
        (local.get $d) (local.get $dmin)
        (i32.or
          (i32.and (local.get $both) (i32.const 0x0f0f0f0f))
          (i32.and (i32.shr_u (local.get $s) (i32.const 2)) (i32.const 0x30303030)))
        (i32.or
          (i32.and (i32.shr_u (local.get $both) (i32.const 4)) (i32.const 0x0f0f0f0f))
          (i32.and (i32.shr_u (local.get $m) (i32.const 2)) (i32.const 0x30303030)))
        (local.get $center)
        (i32.add (local.get $scales) (i32.const 16))
        (i32.add (local.get $offsets) (i32.const 16)))))

  ;; d, dmin, scales and minima, then for each two runs 32 bytes: the first in the low nibbles, the second in the high
  (func (export "Q4_K")
    (param $from i32) (param $end i32) (param $codes i32) (param $scales i32) (param $offsets i32) (result f32)
    (local $x v128) (local $y v128) (local $largest v128) (local $stop i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (local.set $largest
          (f32x4.max
            (local.get $largest)
            (call $eightRuns (local.get $from) (f32.const 8) (local.get $scales) (local.get $offsets))))
        (local.set $from (i32.add (local.get $from) (i32.const 16)))
        (local.set $stop (i32.add (local.get $from) (i32.const 128)))
        (loop $runs
          (local.set $x (v128.load align=1 (local.get $from)))
          (local.set $y (v128.load offset=16 align=1 (local.get $from)))
          (v128.store (local.get $codes) (call $packed (call $low (local.get $x)) (call $low (local.get $y))))
          (v128.store offset=16
            (local.get $codes)
            (call $packed (call $high (local.get $x)) (call $high (local.get $y))))
          (local.set $codes (i32.add (local.get $codes) (i32.const 32)))
          (local.set $from (i32.add (local.get $from) (i32.const 32)))
          (br_if $runs (i32.lt_u (local.get $from) (local.get $stop))))
        (local.set $scales (i32.add (local.get $scales) (i32.const 32)))
        (local.set $offsets (i32.add (local.get $offsets) (i32.const 32)))
        (br $next)))
    (call $largestOf (local.get $largest)))

  ;; Nibbles and, at bit `run` of other bytes, the bit above them: codes with 112 added.
  (func $withFifth (param $nibbles v128) (param $bits v128) (param $run i32) (result v128)
    (i8x16.add
      (v128.or
        (local.get $nibbles)
        (v128.and
          (i8x16.shl (i8x16.shr_u (local.get $bits) (local.get $run)) (i32.const 4))
          (i8x16.splat (i32.const 16))))
      (i8x16.splat (i32.const 112))))

  ;; d, dmin, scales and minima, 32 bytes with the fifth bits of eight runs, then nibbles as those of Q4_K
  (func (export "Q5_K")
    (param $from i32) (param $end i32) (param $codes i32) (param $scales i32) (param $offsets i32) (result f32)
    (local $x v128) (local $y v128) (local $a v128) (local $b v128) (local $largest v128) (local $run i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (local.set $largest
          (f32x4.max
            (local.get $largest)
            (call $eightRuns (local.get $from) (f32.const 16) (local.get $scales) (local.get $offsets))))
        (local.set $a (v128.load offset=16 align=1 (local.get $from)))
        (local.set $b (v128.load offset=32 align=1 (local.get $from)))
        (local.set $from (i32.add (local.get $from) (i32.const 48)))
        (local.set $run (i32.const 0))
        (loop $runs
          (local.set $x (v128.load align=1 (local.get $from)))
          (local.set $y (v128.load offset=16 align=1 (local.get $from)))
          (v128.store
            (local.get $codes)
            (call $withFifth (call $low (local.get $x)) (local.get $a) (local.get $run)))
          (v128.store offset=16
            (local.get $codes)
            (call $withFifth (call $low (local.get $y)) (local.get $b) (local.get $run)))
          (local.set $run (i32.add (local.get $run) (i32.const 1)))
          (v128.store offset=32
            (local.get $codes)
            (call $withFifth (call $high (local.get $x)) (local.get $a) (local.get $run)))
          (v128.store offset=48
            (local.get $codes)
            (call $withFifth (call $high (local.get $y)) (local.get $b) (local.get $run)))
          (local.set $run (i32.add (local.get $run) (i32.const 1)))
          (local.set $codes (i32.add (local.get $codes) (i32.const 64)))
          (local.set $from (i32.add (local.get $from) (i32.const 32)))
          (br_if $runs (i32.lt_u (local.get $run) (i32.const 8))))
        (local.set $scales (i32.add (local.get $scales) (i32.const 32)))
        (local.set $offsets (i32.add (local.get $offsets) (i32.const 32)))
        (br $next)))
    (call $largestOf (local.get $largest)))

  ;; Nibbles and, at bits `shift` of other bytes, the two bits above them: codes with 96 added.
  (func $withTwo (param $nibbles v128) (param $bits v128) (param $shift i32) (result v128)
    (i8x16.add
      (v128.or
        (local.get $nibbles)
        (v128.and
          (i8x16.shl (i8x16.shr_u (local.get $bits) (local.get $shift)) (i32.const 4))
          (i8x16.splat (i32.const 48))))
      (i8x16.splat (i32.const 96))))

  ;; Four runs' scales of Q6_K: d times a signed byte.
  (func $fourScales (param $d v128) (param $word i32) (param $scales i32)
    (v128.store (local.get $scales) (f32x4.mul (local.get $d) (call $signedBytes (local.get $word)))))

  ;; Of Q6_K, sixteen bytes in every 32 of a half of a block: their nibbles at `low` and 32 after, two bits more at `high`.
  (func $sixBits (param $low i32) (param $high i32) (param $codes i32)
    (local $x v128) (local $y v128) (local $bits v128)
    (local.set $x (v128.load align=1 (local.get $low)))
    (local.set $y (v128.load offset=32 align=1 (local.get $low)))
    (local.set $bits (v128.load align=1 (local.get $high)))
    (v128.store (local.get $codes) (call $withTwo (call $low (local.get $x)) (local.get $bits) (i32.const 0)))
    (v128.store offset=32
      (local.get $codes)
      (call $withTwo (call $low (local.get $y)) (local.get $bits) (i32.const 2)))
    (v128.store offset=64
      (local.get $codes)
      (call $withTwo (call $high (local.get $x)) (local.get $bits) (i32.const 4)))
    (v128.store offset=96
      (local.get $codes)
      (call $withTwo (call $high (local.get $y)) (local.get $bits) (i32.const 6))))

  ;; 128 bytes of nibbles, 64 of two bits more, 16 signed scales, d
  (func (export "Q6_K")
    (param $from i32) (param $end i32) (param $codes i32) (param $scales i32) (param $offsets i32) (result f32)
    (local $d v128) (local $half i32)
    (block $done
      (loop $next
        (br_if $done (i32.ge_u (local.get $from) (local.get $end)))
        (local.set $d
          (f32x4.splat
            (f32x4.extract_lane 0
              (call $floats (i32x4.splat (i32.load16_u offset=208 align=1 (local.get $from)))))))
        (call $fourScales (local.get $d) (i32.load offset=192 align=1 (local.get $from)) (local.get $scales))
        (call $fourScales
          (local.get $d)
          (i32.load offset=196 align=1 (local.get $from))
          (i32.add (local.get $scales) (i32.const 16)))
        (call $fourScales
          (local.get $d)
          (i32.load offset=200 align=1 (local.get $from))
          (i32.add (local.get $scales) (i32.const 32)))
        (call $fourScales
          (local.get $d)
          (i32.load offset=204 align=1 (local.get $from))
          (i32.add (local.get $scales) (i32.const 48)))
        (local.set $half (i32.const 0))
        (loop $halves
          (call $sixBits
            (i32.add (local.get $from) (i32.mul (local.get $half) (i32.const 64)))
            (i32.add (i32.add (local.get $from) (i32.const 128)) (i32.mul (local.get $half) (i32.const 32)))
            (local.get $codes))
          (call $sixBits
            (i32.add (i32.add (local.get $from) (i32.const 16)) (i32.mul (local.get $half) (i32.const 64)))
            (i32.add (i32.add (local.get $from) (i32.const 144)) (i32.mul (local.get $half) (i32.const 32)))
            (i32.add (local.get $codes) (i32.const 16)))
          (local.set $codes (i32.add (local.get $codes) (i32.const 128)))
          (local.set $half (i32.add (local.get $half) (i32.const 1)))
          (br_if $halves (i32.lt_u (local.get $half) (i32.const 2))))
        (local.set $from (i32.add (local.get $from) (i32.const 210)))
        (local.set $scales (i32.add (local.get $scales) (i32.const 64)))
        (br $next)))
    (f32.const 0))
)
