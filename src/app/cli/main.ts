#!/usr/bin/env node
/** The `pondera` command. */

import { run } from "./program.ts";

/** What a shell reports for a process ended by SIGPIPE, which Node turns into an error instead. */
const BROKEN_PIPE = 141;

for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    // `pondera … | head` closes the pipe when it has seen enough; that is no failure to speak of.
    if (error.code === "EPIPE") process.exit(BROKEN_PIPE);
    throw error;
  });
}

// Not process.exit, which would cut off what is still being written to a pipe.
process.exitCode = await run(process.argv.slice(2), process);
