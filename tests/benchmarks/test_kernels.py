"""What oneDNN prints is added up by kind, step by step."""

from benchmarks.kernels import parse

OUTPUT = """\
onednn_verbose,v1,info,oneDNN v3.12 (commit 0)
onednn_verbose,v1,primitive,exec,cpu,reorder,jit:uni,undef,src:bf16::blocked:acdb::f0,attr,,32x3x3x3,0.5
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512,forward_training,src:bf16,attr,alg,mb64,10
onednn_verbose,v1,primitive,exec,cpu,convolution,brg_conv_fwd:avx512,forward_training,src:bf16,attr,alg,mb64,2.5
onednn_verbose,v1,primitive,create:cache_hit,cpu,convolution,jit,backward_data,src:bf16,attr,alg,mb64,99
onednn_verbose,v1,primitive,exec,cpu,convolution,jit_bf16:avx512,backward_weights,src:bf16,attr,alg,mb64,4
step 20.125 ms
onednn_verbose,v1,primitive,exec,cpu,matmul,brg_matmul:avx512,undef,src:bf16,attr,,64x256:256x100,0.25
step 1.000 ms
"""


def test_kernels_count_for_the_step_in_which_they_ran() -> None:
    assert parse(OUTPUT) == [
        (
            20.125,
            {"reorder": 0.5, "convolution forward_training": 12.5, "convolution backward_weights": 4.0},
        ),
        (1.0, {"matmul": 0.25}),
    ]
