"""What looks at pictures: SAM and SAM 2, detectors that read text, CLIP, and the mask stages on them.

ports      what a segmenter, a detector and an embedder are asked, and what they answer
sam, sam2  segmenters from disk; sam_parts: a SAM of any size
detector   Grounding DINO and OWLv2 from disk
clip       CLIP from disk
find, segment, track   masks of one thing through a clip, in three stages that can each be used alone
prompts    points, boxes and frame numbers as people write them
show       masks, points and boxes drawn onto frames
"""
