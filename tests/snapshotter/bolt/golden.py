"""A metadata.db that containerd 1.6's own Go code wrote (snapshots/storage on bbolt).

Three layers unpacked and committed, a container `pod` on top, two sharers, one view, and one
snapshot removed again.
"""

from __future__ import annotations

import base64
import zlib
from typing import Final

_COMPRESSED: Final = (
    "c-"
    "rmVzi%659LMqJ?))n_aiVN=fJ%(Cb{uFa6$7FRf)3q40wFH;#Xeko*4^bt3lbR^7+4Sk0}DfkYzz!#1TrF_vIdEv"
    "42U6rK!qUq@jdr&_rwVas$5%rza;DY<Q_Y|(<##Ddw#wVB2iG=gZ=pfTRvGz#$}PWptg%@JFm8{+<)-"
    "pPu<?H0ssI2002xK>p$}UyfMFK<o~oD@a%<qAOHFF?mlM}00000fazoF?Z0>W2gAo)CgX3bd1<YnH++;b<26-"
    "3u+-xXwSQgh|0c6v+ReOwEA-shYrC=BS-bzm!MC+@d)E&S{kG-zgSHomp5JdfH{CVwW_0{P*!ubT;p3e81=4fs7t"
    "0x~pdY(_-wWGyKWIdKcMx@hxE^}zQP*9)bouJa%J$x!$iMB0jX`_t=i-"
    "V100000%pyle=!*W?j*<UAG4lThM*a_t{NFM1|DGBztMQL&ej3`pKe-"
    ";zer8$L1MH+8U{ACj(A?g;GjKz%ANQ_Aa?)x;mkMN^;NIexLc!<*b7=tp0001{NI^&DlK$DdM*i;_`Ts2=@83}Q{"
    ";t~pmy!32)`|K4kI#OQ`MxBBy?wS|e=Tza@>>TNRYhZbuy6Q5{e8a`22rpc*Y%uw6bGT(@rJp7Bl0drt<a5I-"
    "8kIvPV+XwmVAqzcWV%|bCrV2x>B$@rbaM2Xf8hh0002MgcNnMPVWE9gt{Y=b^l9h{HaLR{eP#%uUSd9PxrrVjQhr"
    "T$4cHWef>*z(l;O-KNyayYQ753&6P&0Sus9qy06*T^u4X)YXn98{Dx7<c+;q4ye{%96J9nd7q5zwDi@1S9_-"
    "4>MMYLFtkZ}8<aI~CP+*Tg-skm<rZav<=C{p_pYcLt5VRlt8LRDobXT6S!l>4BhH}a1b!z67MknZdQ*bc9{m_vIQ"
    "#|Xzj9#Z^zSwB36!<d)0001B0!lhI**gE97fIj$vXzXVQups=K2KuK2{-"
    "8TZ3LW5n%XeNx79dpF?dUj7mRULjkk>Xn`&GeeQf(^TDFCAG><u=kj=!7DCT0NBTAWM=7@5(AmNBgz6OzgB_K*OX"
    "N4;Y00000FpbJOxLZ2^FNx$fsoZWhOPnMC00000W?V(*|3|g{e{p&3n*17d`EgqRpByxo9{>OV0ANDqbh4h>{{KI"
    "Jekkh$PSXFsFwy@1t7iZI%<=-+|NpC}$E@!jePAvv00000z!Z5xN9JTDfK0J+;eNLN--jaK|L>~N-"
    "|xCHe#aOOjQ)QY==Vpzzti{oqeUJ70000y1XZ00kM{rjU5)=1XXyWzUq+Da_vabo_e8#*pD*(L{yN6~b@5R8{r#{"
    "0ercJ6{(b-"
    "e004lQG_QmEasB_QoFo7M0001HT>8)UmQ)|T^hS5ps1MXQRR910007Lanvwt0mEq~v_|yLnxWK6b000000000000"
    "3ZW{R1Agr{("
)


def golden_database() -> bytes:
    """The file, 64 KiB."""
    return zlib.decompress(base64.b85decode(_COMPRESSED))


EXPECTED: Final = {
    "k8s.io/10/c1": (7, 2, "k8s.io/6/sha256:02", 1795552952252863043, 0, 0),
    "k8s.io/11/view": (8, 1, "k8s.io/6/sha256:02", 1795552952253357480, 0, 0),
    "k8s.io/2/sha256:00": (1, 3, "", 1795552952236634956, 0, 0),
    "k8s.io/4/sha256:01": (2, 3, "k8s.io/2/sha256:00", 1795552952241443602, 1000, 1),
    "k8s.io/6/sha256:02": (3, 3, "k8s.io/4/sha256:01", 1795552952248615935, 2000, 2),
    "k8s.io/7/pod": (4, 2, "k8s.io/6/sha256:02", 1795552952249200567, 0, 0),
    "k8s.io/9/c0": (6, 2, "k8s.io/6/sha256:02", 1795552952250188251, 0, 0),
}
"""What containerd's WalkInfo and GetInfo say: id, kind, parent, created in ns, size, inodes."""

LAST_NUMBER: Final = 8
