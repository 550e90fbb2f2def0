"""Attention blocks, one file per published mechanism, all written on `attend`."""

from domains.common.attention.convolutional import ConvolutionalAttention, DynamicConvolutionalAttention
from domains.common.attention.core import attend, causal_mask, key_padding_mask, weigh
from domains.common.attention.deformable import MultiScaleDeformableAttention
from domains.common.attention.field import FieldAttention
from domains.common.attention.gated_pooling import GatedAttentionPooling
from domains.common.attention.global_local import GlobalLocalCrossAttention, gather_tokens, select_tokens
from domains.common.attention.group_self_attention import GroupSelfAttention
from domains.common.attention.injection import InjectionGate, InjectionHead
from domains.common.attention.learned_query import HeadProjection, LearnedQueryPooling
from domains.common.attention.multi_branch import BranchLinear, InstanceMasking, MaskReading, Pooled, diversity_loss
from domains.common.attention.multi_query import LQueryAttention, LQueryBlock, MultiQueryAttention
from domains.common.attention.multihead import MultiHeadAttention, merge_heads, split_heads
from domains.common.attention.mvpa import MultiVariateParallelAttention
from domains.common.attention.pairwise import PairwiseCrossAttention
from domains.common.attention.recorder import Recordable, record
from domains.common.attention.reliability import ReliabilityAttention
from domains.common.attention.rollout import attention_map, rollout_matrix, rollout_row
from domains.common.attention.window import ShiftedWindowAttention
from domains.common.attention.window_cross import WindowCrossAttention

__all__ = [
    "attend",
    "weigh",
    "record",
    "Recordable",
    "MultiHeadAttention",
    "FieldAttention",
    "LQueryAttention",
    "LQueryBlock",
    "MultiQueryAttention",
    "MultiVariateParallelAttention",
    "ConvolutionalAttention",
    "DynamicConvolutionalAttention",
    "MultiScaleDeformableAttention",
    "GroupSelfAttention",
    "ShiftedWindowAttention",
    "WindowCrossAttention",
    "ReliabilityAttention",
    "PairwiseCrossAttention",
    "GlobalLocalCrossAttention",
    "InjectionGate",
    "InjectionHead",
    "GatedAttentionPooling",
    "LearnedQueryPooling",
    "HeadProjection",
    "BranchLinear",
    "Pooled",
    "InstanceMasking",
    "MaskReading",
    "diversity_loss",
    "rollout_row",
    "rollout_matrix",
    "attention_map",
    "select_tokens",
    "gather_tokens",
    "causal_mask",
    "key_padding_mask",
    "merge_heads",
    "split_heads",
]
