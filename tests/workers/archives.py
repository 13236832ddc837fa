"""Archives of code, good ones and those that a stranger might make."""

import hashlib
import io
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path


def zipped(files: Mapping[str, bytes | str], **attributes: int) -> bytes:
    """A zip file with files; `attributes` are those of their entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            for attribute, value in attributes.items():
                setattr(entry, attribute, value)
            archive.writestr(entry, content)
    return buffer.getvalue()


def link(name: str, target: str) -> bytes:
    """A zip file with a symbolic link."""
    return zipped({name: target}, external_attr=(stat.S_IFLNK | 0o777) << 16)


def sha256_of(content: bytes) -> str:
    """As an upload is named."""
    return hashlib.sha256(content).hexdigest()


def wheel(folder: Path, name: str, files: dict[str, str], version: str = "1.0") -> Path:
    """A wheel of a package, as `pip` takes it, with some files."""
    about = f"{name}-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    whole = files | {f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", f"{about}/WHEEL": tags}
    record = f"{about}/RECORD"
    whole[record] = "".join(f"{file},,\n" for file in [*whole, record])
    path = folder / f"{name}-{version}-py3-none-any.whl"
    path.write_bytes(zipped(whole))
    return path
