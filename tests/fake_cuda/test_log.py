"""Kernel names as the tests read them."""

import pytest

from .log import parse, short

VECTORIZED = "void at::native::vectorized_elementwise_kernel<4, {}, std::array<char*, 2ul> >(int, {}, std::array<char*, 2ul>)"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pointwise_fwd_kernel", "pointwise_fwd_kernel"),
        (
            "void effnet::cuda::(anonymous namespace)::merge_rows_kernel<float>(effnet::cuda::Merge)",
            "merge_rows_kernel",
        ),
        (
            VECTORIZED.format("at::native::FillFunctor<float>", "x"),
            "vectorized_elementwise_kernel<FillFunctor>",
        ),
        (
            VECTORIZED.format("at::native::BUnaryFunctor<float, at::native::MulFunctor<float> >", "x"),
            "vectorized_elementwise_kernel<MulFunctor>",
        ),
        (
            VECTORIZED.format(
                "at::native::(anonymous namespace)::silu_kernel(at::TensorIteratorBase&)::{lambda()#1}", "x"
            ),
            "vectorized_elementwise_kernel<silu_kernel>",
        ),
    ],
)
def test_short_names(name: str, expected: str) -> None:
    assert short(name) == expected


def test_a_line_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        parse(["nonsense\t1"])
