"""Record a parity case from DeepCTR-Torch 0.3.0 (Apache-2.0): run in an interpreter that has it installed.

python tests/data/ctr/record_deepctr_torch.py tests/parity/cases/autoint_deepctr_torch.safetensors
"""

from __future__ import annotations

import json
import sys

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import AutoInt
from safetensors.torch import save_file

SIZES, NUMBERS, ROWS = (7, 9, 5, 8), 3, 12
OPTIONS = {"att_layer_num": 2, "att_head_num": 2, "att_res": True, "dnn_hidden_units": [16, 8]}


def main(path: str) -> None:
    torch.manual_seed(0)
    columns = [DenseFeat(f"n{i}", 1) for i in range(NUMBERS)]
    columns += [SparseFeat(f"c{i}", size, 6) for i, size in enumerate(SIZES)]
    model = AutoInt(columns, columns, **OPTIONS, init_std=0.3, l2_reg_embedding=0.0, l2_reg_dnn=0.0)
    for parameter in model.parameters():  # biases start at zero there; here each must count
        parameter.data.normal_(std=0.4)
    given = {f"input/n{i}": torch.randn(ROWS) for i in range(NUMBERS)}
    given |= {f"input/c{i}": torch.randint(size, (ROWS,)) for i, size in enumerate(SIZES)}
    given["input/label"] = torch.rand(ROWS).round()
    rows = torch.stack([given[f"input/{name}"].float() for name in model.feature_index], dim=1)
    predicted = model(rows)
    loss = torch.nn.functional.binary_cross_entropy(predicted.squeeze(1), given["input/label"])
    loss.backward()
    tensors = {**given, "output/pred": predicted.detach(), "loss/bce": loss.detach()}
    tensors |= {f"weight/{name}": tensor for name, tensor in model.state_dict().items()}
    for name in ("embedding_dict.c1.weight", "int_layers.0.W_Query", "dnn_linear.weight"):
        tensors[f"grad/{name}"] = dict(model.named_parameters())[name].grad
    fields = [{"name": f"n{i}", "kind": "numerical"} for i in range(NUMBERS)]
    fields += [{"name": f"c{i}", "kind": "categorical", "size": size} for i, size in enumerate(SIZES)]
    metadata = {"system": "autoint_deepctr_torch", "source": "deepctr-torch 0.3.0", "dtype": "float32"}
    save_file(
        {k: v.contiguous() for k, v in tensors.items()},
        path,
        metadata | {"config": json.dumps({**OPTIONS, "fields": fields})},
    )


if __name__ == "__main__":
    main(sys.argv[1])
