"""Proof preimages: what a statement is proven from. Their values are a witness."""

from __future__ import annotations

from dataclasses import dataclass, field

from gpuprover.errors import about
from gpuprover.midnight.encoding import Buffer, Reader, Writer, tagged

TAG = "proof-preimage"


@dataclass(frozen=True)
class Preimage:
    """What a statement is proven from; scalars are integers below r. Its values are secret.

    Attributes:
        inputs: the circuit's inputs.
        private_transcript: values that the circuit asks its prover for.
        public_transcript_inputs: public values that the circuit has to declare.
        public_transcript_outputs: public values that the circuit is given.
        binding_input: the public input that binds the proof to a transaction.
        communications_commitment: the commitment to inputs and outputs, and its randomness; None: there is
            none.
        key_location: the circuit's name.
    """

    inputs: tuple[int, ...] = field(repr=False)
    private_transcript: tuple[int, ...] = field(repr=False)
    public_transcript_inputs: tuple[int, ...] = field(repr=False)
    public_transcript_outputs: tuple[int, ...] = field(repr=False)
    binding_input: int = field(repr=False)
    communications_commitment: tuple[int, int] | None = field(repr=False)
    key_location: str


@about("witness")
def read_preimage(data: Buffer, path: str = "preimage") -> Preimage:
    """A preimage's file.

    Raises:
        MalformedFile, UnsupportedFile: names the field.
    """
    _, reader = tagged(data, [TAG], path)
    preimage = read_fields(reader)
    reader.end("preimage")
    return preimage


def write_preimage(preimage: Preimage) -> bytes:
    """The file of a preimage."""
    writer = Writer(TAG)
    write_fields(writer, preimage)
    return bytes(writer)


def read_fields(reader: Reader) -> Preimage:
    """A preimage within other data, without a tag."""

    def pair(name: str) -> tuple[int, int]:
        return reader.scalar(name), reader.scalar("communications randomness")

    return Preimage(
        reader.vector(reader.scalar, "inputs"),
        reader.vector(reader.scalar, "private transcript"),
        reader.vector(reader.scalar, "public transcript inputs"),
        reader.vector(reader.scalar, "public transcript outputs"),
        reader.scalar("binding input"),
        reader.option(pair, "communications commitment"),
        reader.string("key location"),
    )


def write_fields(writer: Writer, preimage: Preimage) -> None:
    """Writes what :func:`read_fields` reads."""
    for values in (
        preimage.inputs,
        preimage.private_transcript,
        preimage.public_transcript_inputs,
        preimage.public_transcript_outputs,
    ):
        writer.scalars(values)
    writer.compact(preimage.binding_input)
    writer.option(preimage.communications_commitment, lambda pair: writer.compact(pair[0]).compact(pair[1]))
    writer.string(preimage.key_location)
