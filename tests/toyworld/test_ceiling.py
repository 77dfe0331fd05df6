from types import SimpleNamespace

import torch

from weft.toyworld import ceiling


class Exact:
    """A VAE that keeps everything, up to `shade`."""

    def __init__(self, shade=0.0):
        self.shade = shade

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x))

    def decode(self, z):
        return SimpleNamespace(sample=z + 2 * self.shade)


def test_what_comes_back_unchanged_is_perfect_and_what_is_shaded_is_as_far_as_it_is():
    for sprites in range(3):
        assert (ceiling.ceiling(Exact(), sprites, 3)["psnr_truth"] > 80).all()
    scores = ceiling.ceiling(Exact(-0.01), 2, 3)
    assert (scores["psnr_truth"] - 40).abs().max() < 0.3  # a hundredth is 40 dB
    assert (scores["count_right"] == 1).all()


def test_the_command_prints_a_table_for_each_number_of_sprites(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ceiling", "--n", "2"])
    ceiling.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "sprites," in line] == ["0", "1", "2"]
    assert sum(line.startswith("| psnr_truth |") for line in lines) == 3


def test_frames_come_back_in_their_places():
    video = torch.rand(2, 3, 3, 8, 8)
    torch.testing.assert_close(ceiling.round_trip(Exact(), video), video)
