# SPDX-License-Identifier: Apache-2.0
"""MultiplyByReciprocal: write a division by a constant as a multiplication.

Before::

    y = R.divide(x, c)                     # c constant, float32, nowhere 0

After::

    y = R.multiply(x, 1 / c)

A vector division takes about as long as ten multiplications; networks that normalise their input
begin with one.
"""

import numpy as np
from tvm.ir import Expr
from tvm.relax import Var, op

from tvm_dynprune.passes.dataflow import constant_of, op_name
from tvm_dynprune.passes.rewriter import Rewriter, constant, rewriting_pass


class _MultiplyByReciprocal(Rewriter):
    def rewrite(self, var: Var, call: Expr) -> Expr | None:
        if op_name(call) != "divide":
            return None
        divisor = constant_of(call.args[1])
        if divisor is None or divisor.dtype != np.float32 or not divisor.all():
            return None
        return op.multiply(call.args[0], constant(1 / divisor))


MultiplyByReciprocal = rewriting_pass("MultiplyByReciprocal", _MultiplyByReciprocal)
