"""Run by the Python of a peer's own virtual environment: ``_peer_child.py PEER SOURCE FOLDER TENSOR ROUNDS``.

``SOURCE``: a plain safetensors file. Prints one line of JSON, ``{"load": [[wall, cpu], …], "one": [[wall, cpu], …]}``: seconds
to decrypt all of it as the peer has encrypted it, and to decrypt ``TENSOR`` alone.
"""

import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main(peer: str, source: str, folder: str, tensor: str, rounds: str) -> None:
    load, one = {"cryptotensors": cryptotensors, "tensorizer": tensorizer}[peer](arrays(Path(source)), Path(folder), tensor)
    print(json.dumps({"load": times(load, int(rounds)), "one": times(one, int(rounds))}))


def arrays(path: Path) -> dict[str, Any]:
    """The float16 tensors of a file, with nothing but numpy."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    table = {name: fields for name, fields in json.loads(raw[8:start]).items() if name != "__metadata__"}
    places = {name: fields["data_offsets"] for name, fields in table.items()}
    return {name: np.frombuffer(raw[start + begin : start + end], np.float16) for name, (begin, end) in places.items()}


def cryptotensors(tensors: dict[str, Any], folder: Path, name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """AES-256-GCM and an Ed25519 signature, which the package asks for (the key pair is RFC 8032's first test)."""
    from cryptotensors import safe_open
    from cryptotensors.numpy import save_file

    seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    encryption = {"kty": "oct", "alg": "aes256gcm", "k": text(bytes(range(32))), "kid": "e"}
    check = {"kty": "okp", "alg": "ed25519", "x": text(bytes.fromhex(public)), "kid": "s"}
    path = folder / "cryptotensors"
    save_file(tensors, path, config={"enc_key": encryption, "sign_key": check | {"d": text(bytes.fromhex(seed))}})
    config = {"enc_key": encryption, "sign_key": check}

    def load() -> object:
        with safe_open(path, "np", config=config) as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}

    def one() -> object:
        with safe_open(path, "np", config=config) as file:
            return file.get_tensor(name)

    return load, one


def tensorizer(tensors: dict[str, Any], folder: Path, name: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """XSalsa20-Poly1305 of libsodium, the package's own way to encrypt."""
    import torch
    from tensorizer import DecryptionParams, EncryptionParams, TensorDeserializer, TensorSerializer

    path, encryption = str(folder / "tensorizer"), EncryptionParams.random()
    serializer = TensorSerializer(path, encryption=encryption)
    serializer.write_state_dict({key: torch.from_numpy(array.copy()) for key, array in tensors.items()})
    serializer.close()
    key = DecryptionParams.from_key(encryption.key)

    def load() -> object:
        with TensorDeserializer(path, device="cpu", encryption=key, lazy_load=False) as file:
            return dict(file)

    def one() -> object:
        with TensorDeserializer(path, device="cpu", encryption=key, filter_func=lambda found: found == name) as file:
            return file[name]

    return load, one


def times(call: Callable[[], object], rounds: int) -> list[tuple[float, float]]:
    found = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        kept = call()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
        del kept
    return found


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
