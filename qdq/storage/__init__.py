"""Write directories and files that are always whole, and read JSON files with errors for people."""

from qdq.storage.directory import atomic_directory
from qdq.storage.files import check_readable, read_json, write_bytes_atomic, write_json, write_text_atomic
from qdq.storage.git_lfs import is_pointer, refuse_pointer
from qdq.storage.manifest import MANIFEST
from qdq.storage.messages import missing_directory, resume_mismatch
from qdq.storage.own_files import REPAIRED_BY, check_no_input, check_replaceable_file

__all__ = [
    "MANIFEST",
    "REPAIRED_BY",
    "atomic_directory",
    "check_no_input",
    "check_readable",
    "check_replaceable_file",
    "is_pointer",
    "missing_directory",
    "read_json",
    "refuse_pointer",
    "resume_mismatch",
    "write_bytes_atomic",
    "write_json",
    "write_text_atomic",
]
