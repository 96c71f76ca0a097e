"""The message `tf.train.Example`, of the library of Protocol Buffers."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

_ONE, _MANY = Field.LABEL_OPTIONAL, Field.LABEL_REPEATED


def _class():
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def add(messages, name, *fields):
        message = messages.add(name=name)
        for number, (title, kind, label, of) in enumerate(fields, start=1):
            message.field.add(name=title, number=number, type=kind, label=label, type_name=of)
        return message

    lists = {"BytesList": Field.TYPE_BYTES, "FloatList": Field.TYPE_FLOAT, "Int64List": Field.TYPE_INT64}
    titles = ("bytes_list", "float_list", "int64_list")
    for name, kind in lists.items():
        add(file.message_type, name, ("value", kind, _MANY, None))
    kinds = [(title, Field.TYPE_MESSAGE, _ONE, f".t.{name}") for title, name in zip(titles, lists, strict=True)]
    feature = add(file.message_type, "Feature", *kinds)
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = add(file.message_type, "Features", ("feature", Field.TYPE_MESSAGE, _MANY, ".t.Features.FeatureEntry"))
    key, value = ("key", Field.TYPE_STRING, _ONE, None), ("value", Field.TYPE_MESSAGE, _ONE, ".t.Feature")
    add(features.nested_type, "FeatureEntry", key, value).options.map_entry = True
    add(file.message_type, "Example", ("features", Field.TYPE_MESSAGE, _ONE, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


Example = _class()
