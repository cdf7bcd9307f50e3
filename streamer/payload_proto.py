"""The class of Protobuf's `fraudflagger.v1.Transaction`, made from `schemas/transaction.proto`.

Made at run time: generated code would be tied to a version of the compiler and of the library. The
file uses a small part of the language (one message, `optional` scalar fields), which is all that is
read here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

__all__ = ["PROTO", "file_descriptor", "transaction_class"]

PROTO = files("streamer").joinpath("schemas/transaction.proto")
_FIELD = re.compile(r"^\s*optional (\w+) (\w+) = (\d+);", re.MULTILINE)
_PACKAGE = re.compile(r"^package ([\w.]+);", re.MULTILINE)
_MESSAGE = re.compile(r"^message (\w+) \{", re.MULTILINE)


def file_descriptor() -> FileDescriptorProto:
    """Return what Protobuf's compiler makes of the file."""
    text = PROTO.read_text()
    (package,), (name,) = _PACKAGE.findall(text), _MESSAGE.findall(text)
    file = FileDescriptorProto(name="transaction.proto", package=package, syntax="proto3")
    message = file.message_type.add(name=name)
    for i, (kind, field, number) in enumerate(_FIELD.findall(text)):
        message.field.add(
            name=field,
            number=int(number),
            label=FieldDescriptorProto.LABEL_OPTIONAL,
            type=FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}"),
            oneof_index=i,
            proto3_optional=True,
        )
        message.oneof_decl.add(name=f"_{field}")  # how `optional` is written down
    return file


@lru_cache(maxsize=1)
def transaction_class() -> Any:
    """Return the message class."""
    pool = DescriptorPool()
    file = file_descriptor()
    pool.Add(file)
    return GetMessageClass(
        pool.FindMessageTypeByName(f"{file.package}.{file.message_type[0].name}")
    )
