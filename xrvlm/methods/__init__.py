"""One file a method; each class is final and owns only what it learns."""

from xrvlm.methods.cocoop import CoCoOp
from xrvlm.methods.coop import CoOp
from xrvlm.methods.gallop import GalLoP
from xrvlm.methods.linear_probe import LinearProbe
from xrvlm.methods.plot import PLOT
from xrvlm.methods.residual_probe import ResidualProbe
from xrvlm.methods.tip_adapter import TipAdapter
from xrvlm.methods.trans_clip import TransCLIP
from xrvlm.methods.xr_vlm import XRVLM
from xrvlm.methods.xr_vlm_plus import XRVLMPlus
from xrvlm.methods.zero_shot import ZeroShot

__all__ = ["PLOT", "XRVLM", "CoCoOp", "CoOp", "GalLoP", "LinearProbe", "ResidualProbe", "TipAdapter", "TransCLIP",
           "XRVLMPlus", "ZeroShot"]
