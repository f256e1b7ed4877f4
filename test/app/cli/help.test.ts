import { describe, expect, it } from "vitest";
import { pondera } from "./harness.ts";

describe("--help", () => {
  it.each([
    ["train"],
    ["eval"],
    ["chat"],
    ["generate"],
    ["export"],
    ["inspect"],
    ["perplexity"],
    ["tokenize"],
    ["render"],
    ["pull"],
    ["list"],
    ["show"],
    ["rm"],
    ["cp"],
    ["bench"],
    ["bench", "train"],
    ["bench", "generate"],
    ["bench", "matmul"],
  ])("of pondera %s %s says what it is for, with examples that name it", async (...command) => {
    const { code, out, err } = await pondera([...command, "--help"]);
    expect({ code, err }).toEqual({ code: 0, err: "" });
    expect(out).toContain(`Usage: pondera ${command.join(" ")}`);
    const examples = out
      .slice(out.indexOf("Examples:"))
      .split("\n")
      .filter((line) => line.startsWith("  $ "));
    expect(examples.length).toBeGreaterThan(0);
    for (const example of examples) expect(example).toContain(`pondera ${command.join(" ")}`);
  });
});
