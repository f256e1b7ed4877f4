/** Which files of a repository to fetch. */

import { ConfigError } from "../../base/errors.ts";

/**
 * Whether a path fits a pattern: `*` is any text, slashes too, `?` any one character, all else itself; a pattern that ends in a
 * slash means everything below it. Takes at most length times length steps, whatever the pattern.
 */
export function matches(path: string, pattern: string): boolean {
  const wanted = pattern.endsWith("/") ? `${pattern}*` : pattern;
  let [p, w] = [0, 0];
  let star = -1;
  let afterStar = 0;
  while (p < path.length) {
    if (wanted[w] === "*") {
      star = w++;
      afterStar = p;
    } else if (w < wanted.length && (wanted[w] === "?" || wanted[w] === path[p])) {
      p++;
      w++;
    } else if (star >= 0) {
      w = star + 1;
      p = ++afterStar;
    } else return false;
  }
  while (wanted[w] === "*") w++;
  return w === wanted.length;
}

/** The same weights for other frameworks, and conversions, left out where there are safetensors. */
const OTHER_WEIGHTS = [
  ...[
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.tflite",
    "*.mlmodel",
    "*.onnx",
    "*.onnx_data",
  ],
  ...["*.gguf", "onnx/*", "openvino/*", "original/*", "metal/*", "coreml/*"],
];

const isWeights = (path: string) => path.endsWith(".safetensors");

export interface Selection<File> {
  readonly files: readonly File[];
  /** Left out without being asked to: other forms of the same weights. */
  readonly omitted: readonly File[];
}

/** A quantization in several parts is one choice. */
const choiceOf = (path: string): string => path.replace(/-\d{5}-of-\d{5}(?=\.gguf$)/i, "-*");

/**
 * The files that are wanted: those of `include`, or everything but weights in other formats where there are safetensors; without
 * those of `exclude`.
 * @throws ConfigError when nothing is left, or when several quantizations are and none was chosen
 */
export function selectFiles<File extends { readonly path: string }>(
  where: string,
  files: readonly File[],
  { include, exclude }: { readonly include: readonly string[]; readonly exclude: readonly string[] },
): Selection<File> {
  const fits = (patterns: readonly string[]) => (file: File) =>
    patterns.some((pattern) => matches(file.path, pattern));
  const kept = files.filter((file) => !fits(exclude)(file));
  const chosen = include.length > 0 ? kept.filter(fits(include)) : kept;
  const rest =
    include.length === 0 && chosen.some(({ path }) => isWeights(path))
      ? chosen.filter(fits(OTHER_WEIGHTS))
      : [];
  const selected = chosen.filter((file) => !rest.includes(file));
  if (selected.length === 0) {
    throw new ConfigError({
      where,
      rule: "must leave files to fetch",
      got: `none of ${files.length}`,
      remedy: "Check --include and --exclude; * is any text, ? any character, and case counts",
    });
  }
  const choices = [
    ...new Set(
      selected
        .filter(({ path }) => /\.gguf$/i.test(path) && !/mmproj/i.test(path))
        .map(({ path }) => choiceOf(path)),
    ),
  ];
  if (include.length === 0 && choices.length > 1) {
    throw new ConfigError({
      where,
      rule: "has several GGUF files, of which one is to be chosen with --include",
      got: `${choices.slice(0, 30).join(", ")}${choices.length > 30 ? ", …" : ""}`,
      remedy: `For instance --include ${JSON.stringify(choices.find((path) => /q4_k_m/i.test(path)) ?? choices[0])}`,
    });
  }
  return { files: selected, omitted: rest };
}
