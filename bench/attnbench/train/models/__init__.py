"""stand-in"""
import torch
from torch import nn

from attnbench.train.models.bridge import Attends, Builds


class Block(nn.Module):
    def __init__(self, c, h, builds, p):
        super().__init__()
        self.n1=nn.LayerNorm(c); self.qkv=nn.Linear(c,3*c); self.out=nn.Linear(c,c); self.n2=nn.LayerNorm(c)
        self.up=nn.Linear(c,4*c); self.down=nn.Linear(4*c,c); self.attends=Attends(builds); self.h=h; self.p=p
    def forward(self,x):
        b,t,c=x.shape
        q,k,v=self.qkv(self.n1(x)).view(b,t,3,self.h,c//self.h).permute(2,0,3,1,4)
        y=self.attends(q,k,v,mask="causal",dropout_p=self.p if self.training else 0.0)
        x=x+self.out(y.transpose(1,2).reshape(b,t,c))
        return x+self.down(nn.functional.gelu(self.up(self.n2(x))))

class Tiny(nn.Module):
    def __init__(self, w, v, builds):
        super().__init__()
        c=w.d_model or 32; self.emb=nn.Embedding(v,c); self.pos=nn.Embedding(w.seqlen,c)
        self.blocks=nn.ModuleList(Block(c,w.heads or 2,builds,w.dropout) for _ in range(w.layers or 2))
        self.norm=nn.LayerNorm(c); self.head=nn.Linear(c,v,bias=False)
    def forward(self,input_ids):
        x=self.emb(input_ids)+self.pos.weight[:input_ids.shape[1]]
        for b in self.blocks: x=b(x)
        return {"tokens": self.head(self.norm(x))}

def build_model(workload, task, attention, device, seed):
    builds=Builds(attention, device, seed=seed)
    torch.manual_seed(seed)
    return Tiny(workload, task.vocab_size, builds).to(device)
