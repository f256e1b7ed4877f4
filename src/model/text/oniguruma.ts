/**
 * The regular expressions of `tokenizer.json` are Oniguruma's, in Ruby's syntax. They differ from JavaScript's where it is
 * not seen: `\s` is Unicode's White_Space there (with U+0085, without U+FEFF), `\d` any decimal digit, `.` anything but "\n",
 * `^` and `$` any line's ends, and `(?i:…)` a group of its own mode. This translates what such files use, and gives up on the
 * rest rather than guess.
 * @source github.com/kkos/oniguruma, doc/RE and doc/UNICODE_PROPERTIES
 */

/** Thrown within, and caught by {@link fromOniguruma}. */
class Unsupported extends Error {}

const SYNTAX = "^$\\.*+?()[]{}|/";
const WORD = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
const CONTROL: Readonly<Record<string, string>> = {
  n: "\\n",
  r: "\\r",
  t: "\\t",
  f: "\\f",
  v: "\\v",
  a: "\\x07",
  e: "\\x1b",
};

/** Characters that fold to one of ASCII beside its other case. */
const FOLDED: Readonly<Record<string, string>> = { s: "\u017f", k: "\u212a" };

function anyCase(character: string): string {
  const lower = character.toLowerCase();
  if (!/^[a-z]$/.test(lower)) {
    if (lower !== character.toUpperCase()) throw new Unsupported("letters beyond ASCII in any case");
    return literal(character);
  }
  return `[${lower}${lower.toUpperCase()}${FOLDED[lower] ?? ""}]`;
}

const literal = (character: string): string => (SYNTAX.includes(character) ? `\\${character}` : character);

class Translator {
  readonly #source: readonly string[];
  #at = 0;

  constructor(source: string) {
    this.#source = [...source];
  }

  translate(): string {
    const text = this.#alternatives(false);
    if (this.#at < this.#source.length) throw new Unsupported("an unmatched bracket");
    return text;
  }

  #starts(text: string): boolean {
    return [...text].every((character, i) => this.#source[this.#at + i] === character);
  }

  #take(text: string): boolean {
    if (!this.#starts(text)) return false;
    this.#at += text.length;
    return true;
  }

  #next(): string {
    const character = this.#source[this.#at++];
    if (character === undefined) throw new Unsupported("an unexpected end");
    return character;
  }

  #alternatives(ignoreCase: boolean): string {
    let text = "";
    while (this.#at < this.#source.length && !this.#starts(")")) {
      if (this.#take("|")) text += "|";
      else text += this.#atom(ignoreCase) + this.#quantifier();
    }
    return text;
  }

  #atom(ignoreCase: boolean): string {
    if (this.#take("(")) return this.#group(ignoreCase);
    if (this.#take("[")) return this.#class(ignoreCase);
    if (this.#take(".")) return "[^\\n]";
    if (this.#take("^")) return "(?<![^\\n])";
    if (this.#take("$")) return "(?=\\n|(?![\\s\\S]))";
    if (this.#take("\\")) return this.#escape(false, ignoreCase);
    const character = this.#next();
    if ("*+?".includes(character)) throw new Unsupported("a quantifier of nothing");
    return ignoreCase ? anyCase(character) : literal(character);
  }

  #group(ignoreCase: boolean): string {
    let open = "(?:";
    let fold = ignoreCase;
    if (this.#take("?")) {
      const kind = ["i:", ":", "=", "!", "<=", "<!"].find((prefix) => this.#take(prefix));
      if (kind === undefined) throw new Unsupported("a group of another kind");
      if (kind === "i:") fold = true;
      else open = `(?${kind}`;
    }
    const inner = this.#alternatives(fold);
    if (!this.#take(")")) throw new Unsupported("a group without an end");
    return `${open}${inner})`;
  }

  #class(ignoreCase: boolean): string {
    let text = this.#take("^") ? "[^" : "[";
    if (this.#starts("]")) throw new Unsupported("an empty class");
    while (!this.#take("]")) {
      if (this.#starts("[") || this.#starts("&&")) throw new Unsupported("a class of classes");
      if (this.#take("\\")) {
        text += this.#escape(true, false);
        continue;
      }
      const character = this.#next();
      if (ignoreCase && /\p{L}/u.test(character)) throw new Unsupported("a class of letters in any case");
      text += character === "-" ? "-" : literal(character);
    }
    return `${text}]`;
  }

  #escape(inClass: boolean, ignoreCase: boolean): string {
    const character = this.#next();
    switch (character) {
      case "s":
        return "\\p{White_Space}";
      case "S":
        return "\\P{White_Space}";
      case "d":
        return "\\p{Nd}";
      case "D":
        return "\\P{Nd}";
      case "w":
        return inClass ? WORD : `[${WORD}]`;
      case "W":
        if (inClass) throw new Unsupported("\\W in a class");
        return `[^${WORD}]`;
      case "A":
        if (!inClass) return "(?<![\\s\\S])";
        break;
      case "z":
        if (!inClass) return "(?![\\s\\S])";
        break;
      case "p":
      case "P":
        return this.#property(character);
      case "x":
        return this.#codePoint(/^(?:\{([\da-fA-F]{1,6})\}|([\da-fA-F]{2}))/);
      case "u":
        return this.#codePoint(/^()([\da-fA-F]{4})/);
      case "-":
        return inClass ? "\\-" : "-";
    }
    const control = CONTROL[character];
    if (control !== undefined) return control;
    if (/[\p{L}\p{N}]/u.test(character)) throw new Unsupported(`\\${character}`);
    return ignoreCase ? anyCase(character) : literal(character);
  }

  #property(letter: "p" | "P"): string {
    const match = /^\{(\^?)([A-Za-z_]+)\}/.exec(this.#source.slice(this.#at, this.#at + 40).join(""));
    if (match === null) throw new Unsupported("a property");
    this.#at += match[0].length;
    const [, not, name] = match;
    const negated = (letter === "P") !== (not === "^");
    // A general category is one or two letters; a longer name is a script's, or a property of another engine.
    return `\\${negated ? "P" : "p"}{${name!.length <= 2 ? name : `Script=${name}`}}`;
  }

  #codePoint(form: RegExp): string {
    const match = form.exec(this.#source.slice(this.#at, this.#at + 8).join(""));
    const hex = match?.[1] || match?.[2];
    if (match === null || hex === undefined) throw new Unsupported("a character by its number");
    this.#at += match[0].length;
    return `\\u{${hex}}`;
  }

  #quantifier(): string {
    let text = ["*", "+", "?"].find((sign) => this.#take(sign)) ?? "";
    if (text === "" && this.#starts("{")) {
      const match = /^\{\d{1,6}(?:,\d{0,6})?\}/.exec(this.#source.slice(this.#at, this.#at + 16).join(""));
      if (match === null) throw new Unsupported("a brace");
      text = match[0];
      this.#at += text.length;
    }
    if (text === "") return "";
    if (this.#take("?")) text += "?";
    if (["*", "+", "?", "{"].some((sign) => this.#starts(sign)))
      throw new Unsupported("a possessive quantifier");
    return text;
  }
}

/** The same expression for JavaScript, searching everywhere; undefined when it uses what is not translated. */
export function fromOniguruma(source: string): RegExp | undefined {
  try {
    return new RegExp(new Translator(source).translate(), "gu");
  } catch (error) {
    if (error instanceof Unsupported || error instanceof SyntaxError) return undefined;
    throw error;
  }
}
