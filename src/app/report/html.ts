/** HTML without injection: every value put into a template is escaped unless it is HTML made by a template itself. */

/** A piece of finished HTML. Only {@link html} and {@link raw} make one. */
export class Html {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

type Value = Html | string | number | false | undefined | readonly Value[];

const ESCAPES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

/** Text as HTML text or quoted attribute value. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, (character) => ESCAPES[character]!);
}

function show(value: Value): string {
  if (value instanceof Html) return value.text;
  if (Array.isArray(value)) return value.map(show).join("");
  return value === false || value === undefined ? "" : escapeHtml(String(value));
}

/** A template whose values are escaped; `false` and `undefined` vanish, arrays are joined. */
export function html(strings: TemplateStringsArray, ...values: readonly Value[]): Html {
  return new Html(strings.map((part, i) => (i === 0 ? part : show(values[i - 1]) + part)).join(""));
}

/** Trusted text of our own or of a library, put in as it is. */
export function raw(text: string): Html {
  return new Html(text);
}

/** A value as JSON inside a `<script>`: nothing in it can end the element or open a comment. */
export function embedJson(value: unknown): Html {
  return new Html(
    JSON.stringify(value).replace(/[<>&]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`),
  );
}
