"""Compiled walks over fabrics with ports only, as most clusters have: the rows of
`moesim.hardware.routes` without a call per pair.

Shape legend: S senders = D receivers = devices, N ops.
"""

from moesim.compiled import compiled


@compiled(plain_s=lambda _, __, pairs_2N, *___: 2e-6 * pairs_2N.size)
def port_pairs(tables, bytes_SD, pairs_2N, factors, land_D, out, first, filled):
    """Compute the same rows as `pair_rows` for fabrics with ports only: at most five entries for
    each pair, which are sorted where they are written.
    """
    resource, amount = out.resource, out.amount
    n = pairs_2N.shape[1]
    for i in range(first, n):
        if filled + 5 > len(resource):
            return i, filled
        s, d = pairs_2N[0, i], pairs_2N[1, i]
        size = bytes_SD[s, d]
        out.bytes_N[i], out.flows_N[i] = size, 1
        if tables.domain_D[s] == tables.domain_D[d]:
            ends = (tables.near_out_D[s], tables.near_in_D[d])
            sizes = (size * factors.near_out[s], size * factors.near_in[d])
            up, down, place_D = tables.switch_up, tables.switch_down, tables.switch_D
            out.hops_N[i] = 1 if place_D[s] == place_D[d] else 2
        else:
            ends = (tables.far_out_D[s], tables.far_in_D[d])
            sizes = (size * factors.far_out[s], size * factors.far_in[d])
            up, down, place_D = tables.leaf_up, tables.leaf_down, tables.leaf_D
        begin = filled
        for x in range(2):
            resource[filled], amount[filled] = ends[x], sizes[x]
            filled += 1
        if up[0] >= 0 and place_D[s] != place_D[d]:
            resource[filled], amount[filled] = up[place_D[s]], size * factors.link[s]
            resource[filled + 1], amount[filled + 1] = down[place_D[d]], size * factors.link[s]
            filled += 2
        if land_D[d] >= 0:
            resource[filled], amount[filled] = land_D[d], size
            filled += 1
        for k in range(begin + 1, filled):
            r, much, x = resource[k], amount[k], k
            while x > begin and resource[x - 1] > r:
                resource[x], amount[x] = resource[x - 1], amount[x - 1]
                x -= 1
            resource[x], amount[x] = r, much
        out.ptr[i + 1] = filled
    return n, filled


@compiled(plain_s=lambda _, bytes_SD, *__: 1e-6 * bytes_SD.size)
def port_rows(tables, bytes_SD, by_receiver, factors, land_D, out, first, filled):
    """Compute the same rows as `device_rows` for fabrics with ports only, as most clusters have,
    without a call per pair.
    """
    domain_D, out_D, in_D = tables.domain_D, tables.near_out_D, tables.near_in_D
    switch_D, up, down = tables.switch_D, tables.switch_up, tables.switch_down
    far_out_D, far_in_D = tables.far_out_D, tables.far_in_D
    leaf_D, leaf_up, leaf_down = tables.leaf_D, tables.leaf_up, tables.leaf_down
    near_out, near_in, far_out, far_in, link = factors
    acc, resource, amount = out.acc, out.resource, out.amount
    n = len(bytes_SD)
    for own in range(first, n):
        if filled + len(acc) > len(resource):
            return own, filled
        total, flows, longest = 0.0, 0, 0
        for peer in range(n):
            s, d = (peer, own) if by_receiver else (own, peer)
            size = bytes_SD[s, d]
            if peer == own or size == 0.0:
                continue
            hops = 1
            if domain_D[s] == domain_D[d]:
                acc[out_D[s]] += size * near_out[s]
                acc[in_D[d]] += size * near_in[d]
                if switch_D[s] != switch_D[d]:
                    acc[up[switch_D[s]]] += size * link[s]
                    acc[down[switch_D[d]]] += size * link[s]
                    hops = 2
            else:
                hops = 0
                acc[far_out_D[s]] += size * far_out[s]
                acc[far_in_D[d]] += size * far_in[d]
                if leaf_up[0] >= 0 and leaf_D[s] != leaf_D[d]:
                    acc[leaf_up[leaf_D[s]]] += size * link[s]
                    acc[leaf_down[leaf_D[d]]] += size * link[s]
            if land_D[d] >= 0:
                acc[land_D[d]] += size
            total += size
            flows += 1
            longest = max(longest, hops)
        out.bytes_N[own], out.flows_N[own], out.hops_N[own] = total, flows, longest
        for r in range(len(acc)):
            if acc[r] > 0.0:
                resource[filled], amount[filled] = r, acc[r]
                filled += 1
                acc[r] = 0.0
        out.ptr[own + 1] = filled
    return n, filled
