"""What a benchmark says of the machine it ran on."""
import platform
from pathlib import Path


def cpu_model() -> str:
    "The processor's name as Linux gives it, else its architecture."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
