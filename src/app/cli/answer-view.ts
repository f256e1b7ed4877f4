/** An answer as it is written: the thought dim behind a rule, or only counted; then what is said after it. */

import { type ThinkEvent, ThinkParser } from "../../model/text/think.ts";
import type { Output } from "./io.ts";
import type { Colors } from "./live-view.ts";
import { printable } from "./text.ts";

export interface AnswerViewOptions {
  readonly output: Output;
  readonly colors: Colors;
  /** Whether the line may be written over, as a count that runs does. */
  readonly interactive: boolean;
  readonly hideThinking: boolean;
  /** Whether the prompt opened the thought. */
  readonly thinkOpened: boolean;
}

const THOUGHT_MARGIN = "  │ ";
const MARGIN = "  ";
const CLEAR_LINE = "\r\u001b[K";

const tokens = (count: number): string => `${count} token${count === 1 ? "" : "s"}`;

/** Prints one answer, piece by piece. Nothing but text passes: no escape sequence or control character of the model's. */
export class AnswerView {
  readonly #options: AnswerViewOptions;
  readonly #parser: ThinkParser;
  #kind: "think" | "said" | undefined;
  /** Line breaks since the last text of the section: written when text follows, so that no section ends in empty lines. */
  #breaks = 0;
  #thoughtTokens = 0;
  /** Whether the token before was of the thought: the tags themselves are not counted. */
  #wasThinking: boolean;
  #lineOpen = false;

  constructor(options: AnswerViewOptions) {
    this.#options = options;
    this.#parser = new ThinkParser({ open: options.thinkOpened ? "think" : "text" });
    this.#wasThinking = options.thinkOpened;
  }

  push(piece: string): void {
    this.#show(this.#parser.push(piece));
  }

  /** Tells that a token has been written, after the text it may have added. */
  token(): void {
    const { hideThinking, interactive, output, colors } = this.#options;
    const isThinking = this.#parser.kind === "think";
    if (isThinking && this.#wasThinking) this.#thoughtTokens++;
    this.#wasThinking = isThinking;
    if (isThinking && this.#kind === "think" && hideThinking && interactive) {
      output.write(`${CLEAR_LINE}${colors.dim(`${MARGIN}thinking… ${tokens(this.#thoughtTokens)}`)}`);
    }
  }

  /** Leaves the cursor at the start of a line. */
  end(): void {
    this.#show(this.#parser.end());
    this.#endSection();
  }

  #show(events: readonly ThinkEvent[]): void {
    for (const { kind, text } of events) {
      const section = kind === "think" ? "think" : "said";
      if (section === "think" && this.#options.hideThinking) {
        this.#begin("think");
        continue;
      }
      for (const [i, line] of printable(text, { keepLines: true }).split("\n").entries()) {
        if (i > 0) this.#breaks++;
        // White space alone begins no section and no line.
        const begins = !this.#lineOpen || this.#breaks > 0 || this.#kind !== section;
        if (line === "" || (begins && line.trim() === "")) continue;
        this.#begin(section);
        this.#write(line);
      }
    }
  }

  /** Makes the section the current one. */
  #begin(section: "think" | "said"): void {
    if (this.#kind === section) return;
    this.#endSection();
    this.#kind = section;
    this.#breaks = 0;
  }

  #write(text: string): void {
    const { output, colors } = this.#options;
    const isThought = this.#kind === "think";
    if (this.#lineOpen && this.#breaks > 0) {
      output.write(this.#breaks > 1 ? "\n\n" : "\n");
      this.#lineOpen = false;
    }
    if (!this.#lineOpen) output.write(isThought ? colors.dim(THOUGHT_MARGIN) : MARGIN);
    output.write(isThought ? colors.dim(text) : text);
    this.#lineOpen = true;
    this.#breaks = 0;
  }

  #endSection(): void {
    const { hideThinking, interactive, output, colors } = this.#options;
    if (this.#kind === "think" && hideThinking) {
      const counted = colors.dim(`${MARGIN}(a thought of ${tokens(this.#thoughtTokens)})`);
      output.write(`${interactive ? CLEAR_LINE : ""}${counted}\n`);
    }
    if (this.#lineOpen) output.write("\n");
    this.#lineOpen = false;
    this.#kind = undefined;
  }
}
