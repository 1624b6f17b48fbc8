"""One file a method; each class is final and owns only what it learns."""

from xrvlm.methods.clap import CLAP
from xrvlm.methods.clip_adapter import ClipAdapter
from xrvlm.methods.cocoop import CoCoOp
from xrvlm.methods.coop import CoOp
from xrvlm.methods.dclip import DCLIP
from xrvlm.methods.gallop import GalLoP
from xrvlm.methods.gda import GDA
from xrvlm.methods.linear_probe import LinearProbe
from xrvlm.methods.lp_plus_plus import LPPlusPlus
from xrvlm.methods.plot import PLOT
from xrvlm.methods.prolip import ProLIP
from xrvlm.methods.residual_probe import ResidualProbe
from xrvlm.methods.task_res import TaskRes
from xrvlm.methods.tip_adapter import TipAdapter
from xrvlm.methods.trans_clip import TransCLIP
from xrvlm.methods.xr_vlm import XRVLM
from xrvlm.methods.xr_vlm_plus import XRVLMPlus
from xrvlm.methods.zero_shot import ZeroShot
from xrvlm.methods.zpe import ZPE

__all__ = [
    "CLAP", "DCLIP", "GDA", "PLOT", "XRVLM", "ZPE", "ClipAdapter", "CoCoOp", "CoOp", "GalLoP", "LPPlusPlus",
    "LinearProbe", "ProLIP", "ResidualProbe", "TaskRes", "TipAdapter", "TransCLIP", "XRVLMPlus", "ZeroShot",
]
