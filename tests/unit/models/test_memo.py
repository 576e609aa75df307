import torch

from mmpds.models.memo import Memo


def counted(memo, keys):
    computed = []

    def compute(places):
        computed.extend(keys[place] for place in places)
        return torch.tensor([[float(ord(keys[place]))] * 4 for place in places])

    return [int(tensor[0]) for tensor in memo.of(keys, compute)], computed


def test_each_is_computed_once():
    memo = Memo()
    assert counted(memo, "aba") == ([97, 98, 97], ["a", "b"])
    assert counted(memo, "cab") == ([99, 97, 98], ["c"])
    assert counted(memo, "bc") == ([98, 99], [])


def test_beyond_its_limit_it_computes_anew_and_is_right():
    memo = Memo(limit=2 * 4 * 4)
    assert counted(memo, "abc") == ([97, 98, 99], ["a", "b", "c"])
    assert len(memo) == 2
    assert counted(memo, "cab") == ([99, 97, 98], ["c"])
