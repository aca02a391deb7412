"""Write the files beside this one with the libraries that people use: PyTorch, Keras (on PyTorch) and gguf.

They are small, hold random numbers, and are what the scanner must call clean. Run it in an environment of its own:
``pip install torch==2.13.0 keras==3.15.1 h5py==3.16.0 gguf==0.19.0 && KERAS_BACKEND=torch python tests/vectors/scan/make.py``.
"""

import pathlib

import gguf
import keras
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' -%}{{ messages[0]['content'] | trim }}\n{%- endif -%}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def pytorch() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    torch.save(net.state_dict(), HERE / "state_dict.pt")
    torch.save(net.state_dict(), HERE / "state_dict_legacy.pt", _use_new_zipfile_serialization=False)
    held = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "loss": 0.25, "names": ["a", "b"]}
    torch.save(held, HERE / "checkpoint.pt")
    base = torch.arange(24.0).reshape(4, 6)
    views = {
        "half": torch.ones(2, 3, dtype=torch.float16),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "view": base[1:, 2:4].t(),
    }
    torch.save(
        views | {"base": base, "size": base.shape, "kind": torch.int64, "where": torch.device("cpu")}, HERE / "tensors.pt"
    )
    torch.save(torch.nn.Parameter(torch.zeros(0, 3)), HERE / "parameter.pt")


def with_keras() -> None:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    dense = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu"), layers.Dropout(0.1), layers.Dense(2)])
    dense.save(HERE / "sequential.keras")
    dense.save(HERE / "sequential.h5")
    given = keras.Input((6, 6, 1))
    hidden = layers.Flatten()(layers.Conv2D(2, 3, activation="gelu", kernel_regularizer="l2")(given))
    net = keras.Model(given, layers.Dense(1, use_bias=False)(hidden))
    net.save(HERE / "functional.keras")
    dense.save_weights(HERE / "sequential.weights.h5")


def ggml() -> None:
    writer = gguf.GGUFWriter(HERE / "tiny.gguf", "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_token_list(["<s>", "</s>", "a", "\u00e9"])
    writer.add_token_scores([0.0, 0.0, -1.0, -2.0])
    writer.add_chat_template(TEMPLATE)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.add_tensor("output.weight", np.ones((32, 5), np.float16))
    writer.add_tensor("q.weight", gguf.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    pytorch()
    with_keras()
    ggml()
