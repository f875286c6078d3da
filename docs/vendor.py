"""Bring anew what the site and its tests keep from npm, by version and checksum: python docs/vendor.py (needs npm)

The files are kept in the repository, so neither the build nor a reader needs npm or the network.
"""
import base64
import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FONTS = "docs/_static/fonts"
# package, version, npm's integrity (sha512), and where its files go
PACKAGES = [
    ("mathjax", "3.2.2", "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==", {
        "es5/tex-svg.js": "docs/_static/mathjax/tex-svg.js",
        "LICENSE": "docs/_static/mathjax/LICENSE",
    }),
    ("@fontsource-variable/inter", "5.3.0", "OupL48va4JNofb97w6NYeF9S7W/kHNKM0Er8Dem5nqi4jeOLrVJDoE8tZEpnMJmtkvNbB1EIPPwHcdkF6b1oUA==", {
        "files/inter-latin-wght-normal.woff2": f"{FONTS}/inter.woff2",
        "files/inter-latin-wght-italic.woff2": f"{FONTS}/inter-italic.woff2",
        "LICENSE": f"{FONTS}/LICENSE-inter",
    }),
    ("@fontsource-variable/jetbrains-mono", "5.3.0",
     "F32xpS2NsGYoQi2ADSkKTgpJj7ozajsGgDJ8woTnqjmIB+dxDIqImjl4pXZVEExu8UFZ2ndhmX18EBS/hdz3Lw==", {
        "files/jetbrains-mono-latin-wght-normal.woff2": f"{FONTS}/jetbrains-mono.woff2",
        "LICENSE": f"{FONTS}/LICENSE-jetbrains-mono",
    }),
    ("axe-core", "4.14.1", "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==", {
        "axe.min.js": "tests/axe/axe.min.js",
        "LICENSE": "tests/axe/LICENSE",
    }),
]


def fetch(package: str, version: str, checksum: str, files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(folder).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != checksum:
            sys.exit(f"{package} {version}: the checksum is {found}, not {checksum}")
        with tarfile.open(archive) as tar:
            for name, place in files.items():
                (ROOT / place).parent.mkdir(parents=True, exist_ok=True)
                (ROOT / place).write_bytes(tar.extractfile(f"package/{name}").read())


if __name__ == "__main__":
    for entry in PACKAGES:
        fetch(*entry)
        print(f"{entry[0]} {entry[1]}")
