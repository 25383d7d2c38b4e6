"""The benchmark suite: this package's kernels beside what else a CPU has, in one process, turn by turn.

`machine` measures what the machine could do, `measure` takes the times, `contenders` and `flex` say of what,
`memory` asks fresh processes for their peak, `suite` puts it together as plain data, and `plots` draws that.
"""
